"""Infrared spectrum of a molecule: harmonic, and from the dipoles of molecular dynamics."""

import math
from typing import NamedTuple

import ase
import numpy as np
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from scipy.signal import welch
from tqdm import tqdm

from mfm.evaluation.dynamics import run_dynamics, stop_drifting, thermalise
from mfm.units import AVOGADRO, BOLTZMANN, COULOMB_CONSTANT, SPEED_OF_LIGHT_SQUARED

__all__ = ["Absorption", "Infrared", "absorption_of_dipoles", "absorption_of_dynamics", "infrared_spectrum"]

_WAVENUMBER = 1e8 / (2.0 * math.pi * math.sqrt(SPEED_OF_LIGHT_SQUARED))
"""cm⁻¹ of a mode whose force constant over mass is 1 eV/(Å² amu)."""
_INTENSITY = math.pi / 3.0 * AVOGADRO * COULOMB_CONSTANT / SPEED_OF_LIGHT_SQUARED * 1e-13
"""km/mol of a mode whose dipole changes by 1 e/√amu: N_A/(12 ε₀ c²) |∂μ/∂Q|², with 1 Å = 1e-13 km."""
_LARGEST_FORCE = 0.05
"""eV/Å; beyond, the energy is not at a minimum and rotations mix with vibrations."""
_RIGID = 1e-6
"""Relative size below which a rigid-body motion does not exist: the rotation of a line about itself."""


class Infrared(NamedTuple):
    """Normal modes and how they absorb."""

    wavenumbers: np.ndarray
    """(n_modes,), cm⁻¹, ascending; imaginary ones negative; 3 n_atoms − 6 modes, of a linear molecule − 5."""
    intensities: np.ndarray
    """(n_modes,), km/mol."""
    modes: np.ndarray
    """(n_modes, n_atoms, 3), Å/√amu per unit of normal coordinate: displacements, not mass-weighted."""


class Absorption(NamedTuple):
    """Absorption as a function of wavenumber."""

    wavenumbers: np.ndarray
    """(n_points,), cm⁻¹, ascending from zero."""
    absorption: np.ndarray
    """(n_points,), km/mol per cm⁻¹: its integral over a band compares with the intensity of a normal mode."""


def infrared_spectrum(atoms: ase.Atoms, step: float = 0.005) -> Infrared:
    """Wavenumbers and intensities from a Hessian by central differences of forces and from atomic polar tensors.

    Parameters
    ----------
    atoms : ase.Atoms
        A molecule at a minimum, with an :class:`mfm.MFMCalculator` that has energies and a dipole at its fidelity, best
        in float64.
    step : float, Å
        Displacement of an atom.

    Raises
    ------
    ValueError
        If there is a periodic direction, or a force above 0.05 eV/Å.
    """
    if atoms.pbc.any():
        raise ValueError(f"an infrared spectrum needs a molecule, got `pbc` {atoms.pbc.tolist()}; set it to False")
    largest = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    if largest > _LARGEST_FORCE:
        raise ValueError(
            f"an infrared spectrum needs forces below {_LARGEST_FORCE} eV/Å, got {largest:.3f} in"
            f" {atoms.get_chemical_formula()}; optimise the geometry first"
        )
    polar_tensors = atoms.calc.born_effective_charges(atoms)
    roots = np.repeat(np.sqrt(atoms.get_masses()), 3)
    hessian = _hessian(atoms, step) / np.outer(roots, roots)
    inner = _vibrations(atoms, roots)  # (3 n_atoms, n_modes)
    constants, vectors = np.linalg.eigh(inner.T @ hessian @ inner)
    displacements = (inner @ vectors / roots[:, None]).T.reshape(len(constants), len(atoms), 3)
    slopes = np.einsum("iab,mib->ma", polar_tensors, displacements)
    wavenumbers = _WAVENUMBER * np.sign(constants) * np.sqrt(np.abs(constants))
    return Infrared(wavenumbers, _INTENSITY * np.square(slopes).sum(axis=1), displacements)


def _hessian(atoms: ase.Atoms, step: float) -> np.ndarray:
    """(3 n_atoms, 3 n_atoms), eV/Å², symmetric."""
    moved = atoms.copy()
    moved.calc = atoms.calc
    rows = []
    for atom in range(len(atoms)):
        for axis in range(3):
            forces = []
            for sign in (1.0, -1.0):
                moved.positions[:] = atoms.positions
                moved.positions[atom, axis] += sign * step
                forces.append(moved.get_forces().ravel())
            rows.append((forces[1] - forces[0]) / (2.0 * step))
    matrix = np.array(rows)
    return 0.5 * (matrix + matrix.T)


def _vibrations(atoms: ase.Atoms, roots: np.ndarray) -> np.ndarray:
    """Orthonormal mass-weighted displacements that neither shift nor turn the molecule, (3 n_atoms, n_modes)."""
    relative = atoms.positions - atoms.get_center_of_mass()
    axes = np.eye(3)
    shifts = [np.tile(axis, len(atoms)) for axis in axes]
    turns = [np.cross(axis, relative).ravel() for axis in axes]
    rigid = (np.array(shifts + turns) * roots).T
    left, sizes, _ = np.linalg.svd(rigid, full_matrices=True)
    return np.asarray(left[:, int((sizes > _RIGID * sizes[0]).sum()) :])


def absorption_of_dynamics(
    atoms: ase.Atoms,
    duration: float = 5.0,
    n_runs: int = 8,
    temperature: float = 300.0,
    timestep: float = 0.5,
    resolution: float = 10.0,
    seed: int = 0,
    progress: str | None = None,
) -> Absorption:
    """Absorption from runs at constant energy, each from its own thermostatted start and without rotation.

    In one run of a small molecule the modes hardly exchange energy: bands have their right areas in the mean of many.

    Parameters
    ----------
    atoms : ase.Atoms
        A molecule, best relaxed, with a calculator that gives dipoles; moved in place.
    duration : float, ps
        Of each run; a picosecond of thermostatted dynamics goes before each.
    temperature : float, K
    timestep : float, fs
    resolution : float, cm⁻¹
    progress : str, optional
        Title of a progress bar.

    Returns
    -------
    Absorption
        See :func:`absorption_of_dipoles`; the error that steps make in frequencies is taken out.

    Raises
    ------
    ValueError
        If there is a periodic direction, or the runs are too short for the resolution.
    """
    if atoms.pbc.any():
        raise ValueError(f"an infrared spectrum needs a molecule, got `pbc` {atoms.pbc.tolist()}; set it to False")
    n_steps = round(1000.0 * duration / timestep)
    _segment(n_steps + 1, timestep, resolution)  # before hours of dynamics, not after
    found = []
    for run in tqdm(range(n_runs), desc=progress, unit="run", disable=progress is None):
        thermalise(atoms, temperature, seed + run)
        run_dynamics(atoms, round(1000.0 / timestep), timestep, temperature, seed=seed + run)
        stop_drifting(atoms)
        steps = VelocityVerlet(atoms, timestep * fs).irun(n_steps)
        found.append([atoms.get_dipole_moment() for _ in steps])
    absorption = absorption_of_dipoles(np.array(found), timestep, temperature, resolution)
    return _without_steps(absorption, timestep)


def _without_steps(found: Absorption, timestep: float) -> Absorption:
    """Put bands where they would be with infinitely short steps.

    Velocity Verlet moves a harmonic mode of angular frequency ω at ω', sin(ω'h/2) = ωh/2: 16 cm⁻¹ more at 3500 cm⁻¹ and
    steps of 0.5 fs. Areas stay.
    """
    phases = math.pi * 1e-8 * math.sqrt(SPEED_OF_LIGHT_SQUARED) * timestep * fs * found.wavenumbers  # ω'h/2
    chosen = phases < 0.25 * math.pi
    phases = phases[chosen]
    return Absorption(found.wavenumbers[chosen] * np.sinc(phases / math.pi), found.absorption[chosen] / np.cos(phases))


def absorption_of_dipoles(
    dipoles: np.ndarray, interval: float, temperature: float, resolution: float = 10.0
) -> Absorption:
    """Absorption from dipoles along classical trajectories.

    In linear response the absorption is the spectral density of the dipole's velocity over kT (McQuarrie, Statistical
    Mechanics, chapter 21). Written as N_A/(12 ε₀ c² kT) S(ν̃), where ∫ S dν̃ = ⟨|dμ/dt|²⟩, the area of a harmonic mode,
    whose coordinate has ⟨(dQ/dt)²⟩ = kT, is its intensity N_A/(12 ε₀ c²) |∂μ/∂Q|².

    Parameters
    ----------
    dipoles : (n_runs, n_frames, 3), e Å
    interval : float, fs
        Between two frames.
    temperature : float, K
    resolution : float, cm⁻¹
        Largest distance of the points; runs are cut to as many half-overlapping windows as have it (Welch's method,
        Hann windows).

    Raises
    ------
    ValueError
        If `dipoles` has another shape, or the runs are too short for the resolution.
    """
    if dipoles.ndim != 3 or dipoles.shape[2] != 3:
        raise ValueError(f"`dipoles` must have shape (n_runs, n_frames, 3), got {dipoles.shape}")
    needed = _segment(dipoles.shape[1], interval, resolution)
    step = interval * fs  # Å √(amu/eV)
    velocities = np.diff(dipoles, axis=1) / step
    # windows that overlap by half and leave no frame out
    n_windows = 2 * velocities.shape[1] // needed - 1
    n_segment = 2 * velocities.shape[1] // (n_windows + 1)
    frequencies, density = welch(velocities, 1.0 / step, nperseg=n_segment, axis=1)
    # a difference over one step sees a frequency f as f sinc(π f step)
    density = density.sum(axis=2).mean(axis=0) / np.square(np.sinc(frequencies * step))
    per_wavenumber = 1e-8 * math.sqrt(SPEED_OF_LIGHT_SQUARED)  # frequency of 1 cm⁻¹
    absorption = _INTENSITY * density * per_wavenumber / (BOLTZMANN * temperature)
    return Absorption(frequencies / per_wavenumber, absorption)


def _segment(n_frames: int, interval: float, resolution: float) -> int:
    """Frames in a window that resolves so many cm⁻¹."""
    needed = math.ceil(1.0 / (1e-8 * math.sqrt(SPEED_OF_LIGHT_SQUARED) * resolution * interval * fs))
    if n_frames <= needed:
        raise ValueError(
            f"a resolution of {resolution:g} cm⁻¹ needs runs of more than {needed * interval / 1000.0:.2f} ps, got"
            f" {n_frames * interval / 1000.0:.2f} ps; make the runs longer or the resolution coarser"
        )
    return needed
