"""What a model knows about the data it was trained on, beyond weights."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mfm.density.basis import DensityBasis
from mfm.fidelity import LevelOfTheory
from mfm.structure import Structure

__all__ = ["Domain"]

_N_ELEMENTS = 119


@dataclasses.dataclass(frozen=True)
class Domain:
    """What a model learned about its training data beyond weights; part of every checkpoint."""

    references: Mapping[str, Mapping[int, float]]
    """Fidelity → atomic number → reference energy, eV, of the fidelities that have energies."""
    levels: Mapping[str, LevelOfTheory]
    """Fidelity → level of theory."""
    scale: float = 1.0
    """Root mean square force component of the training set, eV/Å; outputs are in units of it."""
    average_neighbours: float = 16.0
    """Mean number of neighbours within the cutoff."""
    charges: tuple[int, ...] = (0,)
    """Total charges seen."""
    charges_of: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Fidelity → total charges seen with a label at that level. One that is not named here, as in checkpoints written
    before there was such a list, has seen :attr:`charges`."""
    multiplicities: tuple[int, ...] = (1,)
    """Spin multiplicities seen."""
    atomic_numbers: tuple[int, ...] = ()
    """Elements seen; what a model without energies, and so without references, can handle."""
    density_bases: Mapping[str, DensityBasis] = dataclasses.field(default_factory=dict)
    """Fidelity → basis of its densities, free atoms included, of the fidelities that have densities."""

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that every fidelity can handle: those with a reference at all that have energies."""
        known = [set(energies) for energies in self.references.values()]
        return sorted(set.intersection(*known)) if known else sorted(self.atomic_numbers)

    def elements_of(self, fidelity: str) -> set[int]:
        """Atomic numbers that one fidelity can handle: a fine-tuned model knows more of them at its parent's levels."""
        return set(self.references.get(fidelity, self.elements))

    def charges_seen(self, fidelity: str) -> tuple[int, ...]:
        """Total charges with a label at one fidelity."""
        return self.charges_of.get(fidelity, self.charges)

    def knows(self, structure: Structure, fidelity: str) -> bool:
        """Whether a fidelity has seen a structure's elements and its total charge."""
        elements = set(structure.atomic_numbers.tolist())
        return elements <= self.elements_of(fidelity) and structure.charge in self.charges_seen(fidelity)

    def reference_table(self, fidelities: Sequence[str]) -> np.ndarray:
        """Reference energies by atomic number, (n_fidelities, 119), eV; NaN where there is none.

        Raises
        ------
        ValueError
            If a fidelity has no references.
        """
        table = np.full((len(fidelities), _N_ELEMENTS), np.nan)
        for row, fidelity in enumerate(fidelities):
            if fidelity not in self.references:
                raise ValueError(
                    f"no reference energies for fidelity `{fidelity}`, only for {', '.join(self.references)};"
                    " fit them on the training data"
                )
            for number, energy in self.references[fidelity].items():
                table[row, number] = energy
        return table

    def check(self, structure: Structure, fidelities: Collection[str] = ()) -> None:
        """Refuse a structure outside of what the model was trained on.

        Parameters
        ----------
        fidelities : collection of str
            Levels that are asked for. Their labels may have been those of fewer elements and total charges than all
            levels'. If none is named, it is enough that one knows the structure.

        Raises
        ------
        ValueError
            For an element, charge or multiplicity that the training data did not hold, or an element or charge that no
            structure with labels at one of the `fidelities` had.
        """
        elements = set(structure.atomic_numbers.tolist())
        levels = list(self.levels)
        for fidelity in fidelities or [max(levels, key=lambda name: len(elements & self.elements_of(name)))]:
            unseen = sorted(elements - self.elements_of(fidelity))
            if unseen:
                others = [f"`{name}`" for name in levels if elements <= self.elements_of(name)]
                raise ValueError(
                    f"{structure.formula} holds {', '.join(chemical_symbols[z] for z in unseen)}; `{fidelity}` of this"
                    f" model knows {', '.join(chemical_symbols[z] for z in sorted(self.elements_of(fidelity)))}."
                    f" {'Ask for ' + ', '.join(others) + ', or t' if others else 'T'}rain on data with those elements"
                )
        for name, value, seen in (
            ("charge", structure.charge, self.charges),
            ("multiplicity", structure.multiplicity, self.multiplicities),
        ):
            if value not in seen:
                raise ValueError(
                    f"{structure.formula} has {name} {value}; this model was trained on {name} in {sorted(seen)}."
                    f" Set it in `atoms.info`, or train on such data"
                )
        for fidelity in fidelities:
            seen = self.charges_seen(fidelity)
            if structure.charge not in seen:
                others = [f for f in levels if structure.charge in self.charges_seen(f)]
                raise ValueError(
                    f"{structure.formula} has charge {structure.charge}; `{fidelity}` was trained on charge in"
                    f" {sorted(seen)} only. Ask for {', '.join(f'`{f}`' for f in others) or 'another charge'}, or train"
                    f" `{fidelity}` on such data"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able mapping that :meth:`from_dict` reads back."""
        return {
            **dataclasses.asdict(self),
            "references": {f: {str(z): e for z, e in known.items()} for f, known in self.references.items()},
            "levels": {fidelity: dataclasses.asdict(level) for fidelity, level in self.levels.items()},
            "density_bases": {fidelity: basis.to_dict() for fidelity, basis in self.density_bases.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Domain":
        """Read what :meth:`to_dict` wrote."""
        return cls(
            references={f: {int(z): e for z, e in known.items()} for f, known in content["references"].items()},
            levels={f: LevelOfTheory.from_mapping(level) for f, level in content["levels"].items()},
            scale=content["scale"],
            average_neighbours=content["average_neighbours"],
            charges=tuple(content["charges"]),
            charges_of={f: tuple(charges) for f, charges in content.get("charges_of", {}).items()},
            multiplicities=tuple(content["multiplicities"]),
            atomic_numbers=tuple(content.get("atomic_numbers", ())),
            density_bases={f: DensityBasis.from_dict(b) for f, b in content.get("density_bases", {}).items()},
        )
