"""Infrared spectra against closed forms."""

import ase
import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes

from mfm.evaluation.infrared import infrared_spectrum


class Springs(Calculator):
    """Bonds of force constant k, eV/Å², between neighbours in the list, and fixed charges, e."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, constant: float, length: float, charges: list[float]) -> None:
        super().__init__()
        self.constant, self.length, self.fixed = constant, length, np.array(charges)

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        forces, energy = np.zeros((len(atoms), 3)), 0.0
        for i in range(len(atoms) - 1):
            vector = atoms.positions[i + 1] - atoms.positions[i]
            distance = np.linalg.norm(vector)
            energy += 0.5 * self.constant * (distance - self.length) ** 2
            pull = self.constant * (distance - self.length) * vector / distance
            forces[i] += pull
            forces[i + 1] -= pull
        self.results = {"energy": energy, "forces": forces}

    def born_effective_charges(self, atoms):
        return self.fixed[:, None, None] * np.eye(3)


def test_a_diatomic_of_two_charges() -> None:
    direction = np.array([1.0, 2.0, 2.0]) / 3.0
    atoms = ase.Atoms("HCl", [np.zeros(3), 1.27 * direction])
    atoms.calc = Springs(32.0, 1.27, [0.2, -0.2])
    found = infrared_spectrum(atoms)
    reduced = np.prod(atoms.get_masses()) / atoms.get_masses().sum()
    assert found.wavenumbers == pytest.approx([521.471 * np.sqrt(32.0 / reduced)], rel=1e-5)
    # ∂μ/∂Q = q/√m; 1 D²/(Å² amu) is 42.2561 km/mol
    assert found.intensities == pytest.approx([42.2561 * (0.2 * 4.80320) ** 2 / reduced], rel=1e-5)


def test_only_the_antisymmetric_stretch_of_a_line_absorbs_along_it() -> None:
    atoms = ase.Atoms("OCO", [[0.0, 0.0, -1.16], [0.0, 0.0, 0.0], [0.0, 0.0, 1.16]])
    atoms.calc = Springs(100.0, 1.16, [-0.3, 0.6, -0.3])
    found = infrared_spectrum(atoms)
    oxygen, carbon = atoms.get_masses()[:2]
    assert len(found.wavenumbers) == 4
    expected = [np.sqrt(100.0 / oxygen), np.sqrt(100.0 / oxygen * (1.0 + 2.0 * oxygen / carbon))]
    np.testing.assert_allclose(found.wavenumbers[2:], 521.471 * np.array(expected), rtol=1e-5)
    # nothing holds the bend but the square of the step
    assert np.abs(found.wavenumbers[:2]).max() < 10.0
    assert found.intensities[2] == pytest.approx(0.0, abs=1e-10)
    # (∂μ/∂Q)² = (0.6 e)² (1 + 2 m_O/m_C)/(2 m_O)
    slope = 0.6**2 * (1.0 + 2.0 * oxygen / carbon) / (2.0 * oxygen)
    assert found.intensities[3] == pytest.approx(42.2561 * 4.80320**2 * slope, rel=1e-5)


def test_what_has_no_spectrum() -> None:
    atoms = ase.Atoms("HCl", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]], cell=np.eye(3) * 9)
    atoms.calc = Springs(32.0, 1.27, [0.2, -0.2])
    with pytest.raises(ValueError, match=r"needs forces below 0.05 eV/Å, got 4.160 in HCl; optimise the geometry"):
        infrared_spectrum(atoms)
    atoms.pbc = True
    with pytest.raises(ValueError, match="an infrared spectrum needs a molecule, got `pbc`"):
        infrared_spectrum(atoms)
