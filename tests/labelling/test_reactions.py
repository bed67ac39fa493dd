"""Reaction energies of the composite against published references of the GMTKN55 collection.

Geometries (``reactions.xyz``) and reference values, without vibrations, are those of its sets ISO34, G2RC and ACONF:
Goerigk et al., Phys. Chem. Chem. Phys. 19, 32184 (2017), doi:10.1039/C7CP04913G; Grimme et al., J. Org. Chem. 72, 2118
(2007); Curtiss et al., J. Chem. Phys. 106, 1063 (1997); Gruzman et al., J. Phys. Chem. A 113, 11974 (2009).
"""

import functools
from pathlib import Path

import ase.io
import pytest

from mfm.graph import Structure
from mfm.labelling.coupled_cluster import label_composite
from mfm.labelling.levels import CompositeLevel
from mfm.units import conversion_factor

REACTIONS = [
    ({"propyne": -1, "allene": 1}, 1.49),
    ({"propyne": -1, "cyclopropene": 1}, 23.36),
    ({"propene": -1, "cyclopropane": 1}, 7.27),
    ({"nitrogen": -1, "hydrogen": -3, "ammonia": 2}, -39.43),
    ({"trans-butane": -1, "gauche-butane": 1}, 0.598),
]
"""Molecules with their coefficients, and the energy of the reaction, kcal/mol."""


@functools.cache
def _energy(name: str) -> float:
    """kcal/mol"""
    frames = ase.io.read(Path(__file__).with_name("reactions.xyz"), index=":")
    (atoms,) = (frame for frame in frames if frame.info["name"] == name)
    energy = label_composite(Structure.from_ase(atoms), CompositeLevel()).values["energy"]
    return float(energy) * conversion_factor("eV", "kcal/mol")


@pytest.mark.slow
@pytest.mark.parametrize(("reaction", "reference"), REACTIONS)
def test_reaction_energies_of_the_composite(reaction: dict[str, int], reference: float) -> None:
    """To chemical accuracy; the references of isomerisations are themselves good to some tenths."""
    found = sum(coefficient * _energy(name) for name, coefficient in reaction.items())
    print(f"{' '.join(reaction)}: {found:.2f} kcal/mol, reference {reference:.2f}, deviation {found - reference:+.2f}")
    assert found == pytest.approx(reference, abs=1.0)
