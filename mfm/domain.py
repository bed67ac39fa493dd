"""What a model knows about the data it was trained on, beyond weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ase.data import chemical_symbols

from mfm.density.basis import DensityBasis
from mfm.fidelity import LevelOfTheory
from mfm.structure import Structure

__all__ = ["Domain"]


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
    multiplicities: tuple[int, ...] = (1,)
    """Spin multiplicities seen."""
    atomic_numbers: tuple[int, ...] = ()
    """Elements seen; what a model without energies, and so without references, can handle."""
    density_bases: Mapping[str, DensityBasis] = dataclasses.field(default_factory=dict)
    """Fidelity → basis of its densities, free atoms included, of the fidelities that have densities."""

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that the model can handle: those with a reference at every fidelity of an energy."""
        known = [set(energies) for energies in self.references.values()]
        return sorted(set.intersection(*known)) if known else sorted(self.atomic_numbers)

    def check(self, structure: Structure) -> None:
        """Refuse a structure outside of what the model was trained on.

        Raises
        ------
        ValueError
            For an element, charge or multiplicity that the training data did not hold.
        """
        unseen = sorted(set(structure.atomic_numbers.tolist()) - set(self.elements))
        if unseen:
            raise ValueError(
                f"{structure.formula} holds {', '.join(chemical_symbols[z] for z in unseen)}; this model knows"
                f" {', '.join(chemical_symbols[z] for z in self.elements)}. Train on data with those elements"
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
            multiplicities=tuple(content["multiplicities"]),
            atomic_numbers=tuple(content.get("atomic_numbers", ())),
            density_bases={f: DensityBasis.from_dict(b) for f, b in content.get("density_bases", {}).items()},
        )
