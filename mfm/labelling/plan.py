"""What to label: molecules in groups, geometries per molecule, levels per geometry, and in which order."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.data
import numpy as np
import yaml

from mfm.labelling.clusters import sample_cluster
from mfm.labelling.enumeration import enumerate_molecules, ions, pairs, radicals
from mfm.labelling.geometries import canonical_smiles
from mfm.labelling.levels import ForceFieldLevel, Level, make_request, read_level
from mfm.labelling.sampling import Sample, check_origins, sample_molecule
from mfm.structure import Structure

__all__ = ["Plan", "PlannedMolecule", "interleave", "isolated_atoms", "molecule_seed", "read_plan", "sample_planned"]

_GROUP_KEYS = (
    "name", "molecules", "molecules_of", "enumerate", "ions_of", "radicals_of", "pairs_of",
    "pick", "equilibrium", "origins", "stage",
)  # fmt: skip


class PlannedMolecule(NamedTuple):
    """One molecule and how many of its geometries get labels."""

    smiles: str
    """Canonical SMILES; several molecules separated by ``.`` are a cluster."""
    counts: Mapping[str, int]
    """Fidelity → number of geometries that it labels; a key ``dft.density`` counts those that also get the extra."""
    is_test: bool = False
    has_equilibrium: bool = True
    """Whether the equilibrium geometry is among them."""
    parent: str = ""
    """Molecule that this one was derived from."""
    origins: tuple[str, ...] = ()
    """Ways to make its geometries, in turn; the usual mixture if empty."""
    multiplicity: int | None = None
    """2S + 1, if not what the SMILES implies."""
    stage: int = 0
    """Labelled after all molecules of lower stages."""

    @property
    def n_geometries(self) -> int:
        """Geometries that get any label."""
        return max(self.counts.values(), default=0)


class Plan(NamedTuple):
    """A labelling plan."""

    seed: int
    levels: dict[str, Level]
    """Fidelity → level."""
    molecules: list[PlannedMolecule]
    atoms: dict[str, int]
    """Isolated atoms to label at every level that has them, and their multiplicities."""
    first: tuple[str, ...] = ()
    """Fidelities that label all molecules before any other begins."""

    @property
    def test_molecules(self) -> list[str]:
        """Molecules held out whole."""
        return list(dict.fromkeys(molecule.smiles for molecule in self.molecules if molecule.is_test))


def read_plan(path: str | Path) -> Plan:
    """Read a plan from YAML: ``seed``, ``levels``, ``first``, ``groups``, ``test`` and ``atoms`` (docs/labelling.md).

    Raises
    ------
    ValueError
        If a molecule appears twice, a count, level or group is not as it must be, or a test molecule is in no group.
    """
    text = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    named = text["levels"]
    levels = {name: read_level(name, named[name] if isinstance(named, Mapping) else None) for name in named}
    test = text.get("test") or {"molecules": [], "counts": {}}
    reader = _PlanReader(str(path), levels, {canonical_smiles(s) for s in test["molecules"]}, int(text["seed"]))
    for group in text["groups"]:
        reader.add(group, test["counts"].get(group["name"]))
    if lost := sorted(reader.test - {smiles for smiles, _ in reader.found}):
        raise ValueError(
            f"test molecules must be in a group of {path}, got {', '.join(lost)} in none; add or drop them"
        )
    first = tuple(text.get("first", ()))
    if unknown := sorted(set(first) - set(levels)):
        raise ValueError(f"`first` of {path} must name levels ({', '.join(levels)}), got {', '.join(unknown)}")
    return Plan(reader.seed, levels, list(reader.found.values()), dict(text.get("atoms", {})), first)


class _PlanReader:
    """Groups of a plan, read one after the other."""

    def __init__(self, path: str, levels: dict[str, Level], test: set[str], seed: int) -> None:
        self.path, self.levels, self.test, self.seed = path, levels, test, seed
        self.groups: dict[str, list[str]] = {}
        self.found: dict[tuple[str, tuple[str, ...]], PlannedMolecule] = {}

    def add(self, group: dict[str, Any], test_counts: Sequence[int] | None) -> None:
        counts = self._counts(group)
        origins = tuple(group.get("origins", ()))
        if origins:
            check_origins(origins)
        of_group = self._molecules(group, origins)
        for smiles, parent in of_group.items():
            is_test = bool(self.test & {smiles, *smiles.split("."), *parent.split(".")})
            if (smiles, origins) in self.found:
                if smiles != parent:
                    continue  # made from several parents, or listed by hand before
                raise ValueError(f"a molecule must appear once in {self.path}, got `{smiles}` twice; remove one")
            mine = self._test_counts(group, counts, test_counts) if is_test and test_counts else counts
            self._check(smiles, mine)
            # a group of chosen origins is beside another that has the equilibrium
            has_equilibrium = group.get("equilibrium", not origins) or (is_test and not origins)
            self.found[smiles, origins] = PlannedMolecule(
                smiles,
                mine,
                is_test,
                has_equilibrium,
                parent="" if parent == smiles else parent,
                origins=origins,
                stage=int(group.get("stage", 0)),
            )
        self.groups[group["name"]] = list(of_group)

    def _test_counts(
        self, group: dict[str, Any], counts: Mapping[str, int], test_counts: Sequence[int]
    ) -> dict[str, int]:
        if len(test_counts) != len(self.levels):
            raise ValueError(
                f"`test.counts` must give a number for each of {', '.join(self.levels)}, got {list(test_counts)} for"
                f" group `{group['name']}` in {self.path}"
            )
        mine = dict(zip(self.levels, test_counts, strict=True))
        extras = {key: min(count, mine[key.partition(".")[0]]) for key, count in counts.items() if "." in key}
        return mine | extras

    def _molecules(self, group: dict[str, Any], origins: tuple[str, ...]) -> dict[str, str]:
        """SMILES → the molecule it was derived from, or itself."""
        listed = [canonical_smiles(smiles) for smiles in group.get("molecules", [])]
        if duplicates := [smiles for k, smiles in enumerate(listed) if smiles in listed[:k]]:
            raise ValueError(f"a molecule must appear once in {self.path}, got `{duplicates[0]}` twice; remove one")
        made = {smiles: smiles for smiles in self._of_groups(group, "molecules_of")}
        if "enumerate" in group:
            options = group["enumerate"]
            fewest, most = options["heavy_atoms"]
            every = [s for n in range(fewest, most + 1) for s in enumerate_molecules(options["elements"], n)]
            known = {smiles for smiles, ways in self.found if options.get("others") or ways == origins}
            made |= {smiles: smiles for smiles in every if smiles not in known}
        for key, derive in (("ions_of", ions), ("radicals_of", radicals)):
            for parent in self._of_groups(group, key):
                made |= {smiles: parent for smiles in derive(parent) if smiles not in made}
        if "pairs_of" in group:
            molecules = self._of_groups(group, "pairs_of")
            every = pairs(molecules, len(molecules) ** 2, self.seed)
            made |= {pair: pair for pair in every if (pair, origins) not in self.found}
        if "pick" in group and group["pick"] < len(made):
            order = np.random.default_rng(self.seed).permutation(len(made))[: group["pick"]]
            made = {smiles: made[smiles] for smiles in np.array(list(made), dtype=object)[np.sort(order)]}
        return {smiles: smiles for smiles in listed} | made

    def _of_groups(self, group: dict[str, Any], key: str) -> list[str]:
        names = group.get(key, [])
        if unknown := sorted(set(names) - set(self.groups)):
            raise ValueError(
                f"`{key}` of group `{group['name']}` in {self.path} must name groups above it"
                f" ({', '.join(self.groups) or 'none'}), got {', '.join(unknown)}"
            )
        return [smiles for name in names for smiles in self.groups[name]]

    def _counts(self, group: dict[str, Any]) -> dict[str, int]:
        counts = {name: int(group.get(name, 0)) for name in self.levels}
        for key in set(group) - set(_GROUP_KEYS) - set(self.levels):
            fidelity, _, extra = key.partition(".")
            if fidelity not in self.levels or not extra:
                known = ", ".join([*_GROUP_KEYS, *self.levels, *(f"{name}.density" for name in self.levels)])
                raise ValueError(f"group `{group['name']}` in {self.path} has keys {known}; got `{key}`")
            make_request(self.levels[fidelity], [extra])
            counts[key] = int(group[key])
        return counts

    def _check(self, smiles: str, counts: Mapping[str, int]) -> None:
        base = next(iter(self.levels))
        for name, count in counts.items():
            most = counts[name.partition(".")[0]] if "." in name else counts[base]
            if not 0 <= count <= most:
                above = name.partition(".")[0] if "." in name else base
                raise ValueError(
                    f"`{name}` must label at most the geometries that `{above}` labels, got {count}"
                    f" of {most} for `{smiles}` in {self.path}; lower the one or raise the other"
                )


def molecule_seed(seed: int, smiles: str, origins: Sequence[str] = ()) -> int:
    """Seed of one molecule: adding a molecule to a plan leaves the geometries of the others as they were.

    Two groups that make geometries of one molecule in different ways draw from different streams.
    """
    return int.from_bytes(hashlib.sha256(" ".join([str(seed), smiles, *origins]).encode()).digest()[:4], "big")


def isolated_atoms(plan: Plan) -> list[Sample]:
    """The plan's isolated atoms, whose energies become the atomic references of each level."""
    return [
        Sample(
            Structure(np.array([ase.data.atomic_numbers[symbol]]), np.zeros((1, 3)), multiplicity=multiplicity),
            f"[{symbol}]",
            "isolated atom",
        )
        for symbol, multiplicity in plan.atoms.items()
    ]


def sample_planned(molecule: PlannedMolecule, seed: int) -> list[Sample]:
    """All geometries of one molecule of a plan with this seed.

    Raises
    ------
    ValueError
        If a geometry cannot be made.
    """
    n_skipped = int(not molecule.has_equilibrium)
    n_samples, own_seed = molecule.n_geometries + n_skipped, molecule_seed(seed, molecule.smiles, molecule.origins)
    if "." in molecule.smiles:
        return sample_cluster(molecule.smiles, molecule.n_geometries, own_seed)
    options = {"origins": molecule.origins} if molecule.origins else {}
    samples = sample_molecule(molecule.smiles, n_samples, own_seed, multiplicity=molecule.multiplicity, **options)
    if not molecule.parent:
        return samples[n_skipped:]
    return [Sample(s.structure, s.molecule, s.origin, molecule.parent) for s in samples[n_skipped:]]


def interleave(plan: Plan, samples: Sequence[Iterable[Sample]]) -> list[tuple[Sample, str]]:
    """(sample, key of the request) in an order whose every prefix is a balanced dataset.

    A molecule with n geometries has its k-th at (k + ½)/n of its stage, so all molecules of a stage progress at one
    rate, and in an order that does not follow their names; the labels of further levels follow the first, spread
    evenly over the molecule's geometries. Levels that the plan wants first come before all others.
    """
    first = [
        (sample, level.identifier)
        for sample in isolated_atoms(plan)
        for level in plan.levels.values()
        # a force field counts from bonded atoms, not from free ones
        if not isinstance(level, ForceFieldLevel)
    ]
    keyed = []
    for molecule, geometries in zip(plan.molecules, samples, strict=True):
        rank = molecule_seed(plan.seed, molecule.smiles, molecule.origins)
        for k, sample in enumerate(geometries):
            when = (k + 0.5) / molecule.n_geometries
            for order, (name, level) in enumerate(plan.levels.items()):
                if _is_chosen(k, molecule, name):
                    extras = [
                        key.partition(".")[2]
                        for key in molecule.counts
                        if key.startswith(f"{name}.") and _is_chosen(k, molecule, key)
                    ]
                    place = (name not in plan.first, molecule.stage, when, rank, order)
                    keyed.append((place, (sample, make_request(level, extras).key)))
    return first + [job for _, job in sorted(keyed, key=lambda entry: entry[0])]


def _is_chosen(k: int, molecule: PlannedMolecule, name: str) -> bool:
    """Bresenham's line: the count's number of geometries, evenly spread, the first among them."""
    return (k * molecule.counts[name]) % molecule.n_geometries < molecule.counts[name]
