"""What to label: molecules in groups, geometries per molecule, levels per geometry, and in which order."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import ase.data
import numpy as np
import yaml

from mfm.graph import Structure
from mfm.labelling.geometries import canonical_smiles
from mfm.labelling.sampling import Sample, sample_molecule

__all__ = ["Plan", "PlannedMolecule", "interleave", "isolated_atoms", "molecule_seed", "read_plan", "sample_all"]


class PlannedMolecule(NamedTuple):
    """One molecule and how many of its geometries get labels."""

    smiles: str
    """Canonical SMILES."""
    n_base: int
    """Geometries labelled at the base level."""
    n_top: int
    """Of those, geometries labelled at the top level too."""
    is_test: bool
    has_equilibrium: bool
    """Whether the equilibrium geometry is among them."""


class Plan(NamedTuple):
    """A labelling plan."""

    seed: int
    base: str
    """Fidelity that every geometry gets."""
    top: str
    """Fidelity that a subset gets."""
    molecules: list[PlannedMolecule]
    atoms: dict[str, int]
    """Isolated atoms to label at both levels, and their multiplicities."""

    @property
    def test_molecules(self) -> list[str]:
        """Molecules held out whole."""
        return [molecule.smiles for molecule in self.molecules if molecule.is_test]


def read_plan(path: str | Path) -> Plan:
    """Read a plan from YAML: ``seed``, ``levels: [base, top]``, ``groups``, ``test`` and ``atoms``.

    Raises
    ------
    ValueError
        If a molecule appears twice, counts do not fit, or a test molecule is in no group.
    """
    text = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    base, top = text["levels"]
    test = {canonical_smiles(s) for s in text["test"]["molecules"]}
    found: dict[str, PlannedMolecule] = {}
    for group in text["groups"]:
        for smiles in map(canonical_smiles, group["molecules"]):
            if smiles in found:
                raise ValueError(f"a molecule must appear once in {path}, got `{smiles}` twice; remove one")
            is_test = smiles in test
            n_base, n_top = text["test"]["counts"][group["name"]] if is_test else (group[base], group[top])
            if not 0 <= n_top <= n_base:
                raise ValueError(
                    f"`{top}` must label at most the geometries that `{base}` labels, got {n_top}"
                    f" of {n_base} for `{smiles}` in {path}; lower the one or raise the other"
                )
            found[smiles] = PlannedMolecule(smiles, n_base, n_top, is_test, is_test or group.get("equilibrium", True))
    if lost := sorted(test - set(found)):
        raise ValueError(
            f"test molecules must be in a group of {path}, got {', '.join(lost)} in none; add or drop them"
        )
    return Plan(int(text["seed"]), base, top, list(found.values()), dict(text.get("atoms", {})))


def molecule_seed(seed: int, smiles: str) -> int:
    """Seed of one molecule: adding a molecule to a plan leaves the geometries of the others as they were."""
    return int.from_bytes(hashlib.sha256(f"{seed} {smiles}".encode()).digest()[:4], "big")


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


def _sample(job: tuple[PlannedMolecule, int]) -> list[Sample]:
    molecule, seed = job
    n_skipped = int(not molecule.has_equilibrium)
    return sample_molecule(molecule.smiles, molecule.n_base + n_skipped, molecule_seed(seed, molecule.smiles))[
        n_skipped:
    ]


def sample_all(plan: Plan, n_workers: int) -> list[list[Sample]]:
    """Geometries of every molecule of the plan, in its order."""
    jobs = [(molecule, plan.seed) for molecule in plan.molecules]
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_sample, jobs))


def interleave(plan: Plan, samples: Sequence[Iterable[Sample]]) -> list[tuple[Sample, str]]:
    """(sample, fidelity) in an order whose every prefix is a balanced dataset.

    A molecule with n jobs has its k-th job at (k + ½)/n of the queue, so all molecules progress at one rate;
    the top-level label of a geometry follows its base label, spread evenly over the molecule's geometries.
    """
    first = [(sample, fidelity) for sample in isolated_atoms(plan) for fidelity in (plan.base, plan.top)]
    keyed = []
    for rank, (molecule, geometries) in enumerate(zip(plan.molecules, samples, strict=True)):
        for k, sample in enumerate(geometries):
            when = (k + 0.5) / molecule.n_base
            keyed.append((when, rank, 0, (sample, plan.base)))
            # Bresenham's line: n_top of n_base geometries, evenly spread, the first among them
            if (k * molecule.n_top) % molecule.n_base < molecule.n_top:
                keyed.append((when, rank, 1, (sample, plan.top)))
    return first + [job for *_, job in sorted(keyed, key=lambda entry: entry[:3])]
