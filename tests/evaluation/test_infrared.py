"""Infrared spectra against closed forms."""

import ase
import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from scipy.integrate import trapezoid

from mfm.evaluation.infrared import absorption_of_dipoles, absorption_of_dynamics, infrared_spectrum


class Springs(Calculator):
    """Bonds of force constant k, eV/Å², between neighbours in the list, and fixed charges, e."""

    implemented_properties = ["energy", "forces", "dipole"]

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
        self.results = {"energy": energy, "forces": forces, "dipole": self.fixed @ atoms.positions}

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


def test_the_band_of_an_oscillator_has_its_harmonic_area() -> None:
    # <(dQ/dt)²> = kT in one mode of 2000 cm⁻¹ whose dipole changes by 0.3 e/√amu: the area is 42.2561 km/mol D⁻² Å² amu
    femtosecond, boltzmann, temperature = 0.09822695, 8.617333e-5, 400.0  # Å √(amu/eV), eV/K
    frequency = 2000.0 * 2.99792458e-5 / femtosecond
    amplitude = 0.3 * np.sqrt(2.0 * boltzmann * temperature) / (2.0 * np.pi * frequency)
    times = 0.5 * femtosecond * np.arange(20_000)
    dipoles = np.zeros((2, len(times), 3))
    dipoles[0, :, 1] = 4.0 + amplitude * np.sin(2.0 * np.pi * frequency * times)
    dipoles[1, :, 2] = amplitude * np.cos(2.0 * np.pi * frequency * times)
    found = absorption_of_dipoles(dipoles, 0.5, temperature, resolution=8.0)
    spacing = np.diff(found.wavenumbers)
    assert spacing[0] <= 8.0
    np.testing.assert_allclose(spacing, 2e5 / 2.99792458 / 9999, rtol=1e-5)  # three windows that leave no frame out
    assert found.wavenumbers[found.absorption.argmax()] == pytest.approx(2000.0, abs=8.0)
    area = found.absorption.sum() * spacing[0]
    assert area == pytest.approx(42.2561 * (0.3 * 4.80320) ** 2, rel=2e-3)


@pytest.mark.parametrize("n_runs", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_dynamics_of_a_diatomic_absorbs_where_its_mode_does(n_runs: int) -> None:
    atoms = ase.Atoms("HCl", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.27]])
    atoms.calc = Springs(1.0, 1.27, [0.2, -0.2])
    mode = infrared_spectrum(atoms)
    found = absorption_of_dynamics(atoms, 0.8, n_runs, temperature=30.0, timestep=4.0, resolution=50.0, seed=3)
    assert found.wavenumbers[found.absorption.argmax()] == pytest.approx(mode.wavenumbers[0], abs=50.0)
    if n_runs == 60:
        # sixty energies of one mode, each exponentially distributed: 13 % of standard error
        assert trapezoid(found.absorption, found.wavenumbers) == pytest.approx(mode.intensities[0], rel=0.35)


def test_steps_do_not_shift_fast_modes() -> None:
    atoms = ase.Atoms("HCl", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.27]])
    reduced = np.prod(atoms.get_masses()) / atoms.get_masses().sum()
    atoms.calc = Springs((3500.0 / 521.471) ** 2 * reduced, 1.27, [0.2, -0.2])
    found = absorption_of_dynamics(atoms, duration=1.4, n_runs=1, temperature=20.0, resolution=25.0)
    band = found.absorption > 0.01 * found.absorption.max()
    centre = np.average(found.wavenumbers[band], weights=found.absorption[band])
    assert centre == pytest.approx(3500.0, abs=5.0)  # 3516 as the steps have it


def test_what_has_no_absorption() -> None:
    atoms = ase.Atoms("HCl", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.27]])
    atoms.calc = Springs(32.0, 1.27, [0.2, -0.2])
    with pytest.raises(ValueError, match=r"10 cm⁻¹ needs runs of more than 3.34 ps, got 1.00 ps; make the runs"):
        absorption_of_dynamics(atoms, duration=1.0)
    with pytest.raises(ValueError, match=r"must have shape \(n_runs, n_frames, 3\), got \(100, 3\)"):
        absorption_of_dipoles(np.zeros((100, 3)), 0.5, 300.0)
    atoms.pbc = True
    with pytest.raises(ValueError, match="needs a molecule, got `pbc`"):
        absorption_of_dynamics(atoms)
