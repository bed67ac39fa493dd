"""Molecular dynamics as a test of a potential: conservation of energy, growth of memory.

A potential whose forces are not the gradient of its energy, or whose neighbours appear with a jump, can have small
errors on a test set and still heat up or cool down. The drift of the total energy shows it.
"""

import contextlib
import dataclasses
from pathlib import Path

import ase
import numpy as np
import psutil
from ase.data import covalent_radii
from ase.io import Trajectory
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.units import fs, kB
from tqdm import tqdm

__all__ = [
    "Drift",
    "Run",
    "energy_drift",
    "measure_drift",
    "memory_growth",
    "run_dynamics",
    "stop_drifting",
    "survival_time",
    "thermalise",
]

_FRICTION = 0.01
"""1/fs; couples a small molecule to 300 K within a few hundred fs."""

_REST = 1e-6
"""Relative size below which a momentum, or a moment of inertia, is zero."""

_BONDED = 1.3
"""Distance in sums of covalent radii up to which two atoms count as bonded."""
_BROKEN = 0.5
"""Å that a bond may change by (Fu et al., TMLR 2023, arXiv:2210.07237)."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a molecular dynamics run recorded."""

    times: np.ndarray
    """(n_samples,), fs."""
    potential_energies: np.ndarray
    """(n_samples,), eV."""
    total_energies: np.ndarray
    """(n_samples,), eV."""
    temperatures: np.ndarray
    """(n_samples,), K, of the motions that can take up energy: at constant energy, without those that are at rest."""
    memory: np.ndarray
    """(n_samples,), MB: resident memory of this process."""


@dataclasses.dataclass(frozen=True)
class Drift:
    """Conservation of energy in an NVE run."""

    drift: float
    """Slope of a straight line through total energy per atom against time, eV/atom/ps."""
    fluctuation: float
    """Root mean square of the total energy per atom about that line, eV/atom."""
    temperature: float
    """Mean temperature, K."""
    duration: float
    """ps."""
    memory_growth: float
    """MB; see :func:`memory_growth`."""


def thermalise(atoms: ase.Atoms, temperature: float, seed: int) -> None:
    """Give the atoms velocities of a temperature, without net momentum or, for a molecule, rotation.

    Parameters
    ----------
    temperature : float, K
    """
    spread = np.sqrt(kB * temperature * atoms.get_masses())
    atoms.set_momenta(spread[:, None] * np.random.default_rng(seed).normal(size=(len(atoms), 3)))
    stop_drifting(atoms)


def stop_drifting(atoms: ase.Atoms) -> None:
    """Take out net momentum and, of a molecule, rotation."""
    Stationary(atoms, preserve_temperature=False)
    if not atoms.pbc.any() and len(atoms) > 1:
        with np.errstate(divide="ignore", invalid="ignore"):  # a line has no moment of inertia about itself
            ZeroRotation(atoms, preserve_temperature=False)


def _resting(atoms: ase.Atoms) -> int:
    """Rigid motions, of 6, that have no momentum, and will have none at constant energy."""
    momenta = atoms.get_momenta()
    scale = _REST * float(np.linalg.norm(momenta))
    count = 3 if np.linalg.norm(momenta.sum(axis=0)) <= scale else 0
    if not atoms.pbc.any() and len(atoms) > 1:
        relative = atoms.positions - atoms.get_center_of_mass()
        size = float(np.linalg.norm(relative, axis=1).max())
        if np.linalg.norm(np.cross(relative, momenta).sum(axis=0)) <= scale * size:
            moments = np.asarray(atoms.get_moments_of_inertia())
            count += int((moments > _REST * moments.max()).sum())
    return min(count, 3 * len(atoms) - 1)


def run_dynamics(
    atoms: ase.Atoms,
    n_steps: int,
    timestep: float = 0.5,
    temperature: float | None = None,
    seed: int = 0,
    every: int = 10,
    trajectory: Path | None = None,
    progress: str | None = None,
) -> Run:
    """Run molecular dynamics in place, starting from the velocities the atoms have.

    Parameters
    ----------
    n_steps : int
    timestep : float, fs
    temperature : float, K, optional
        With it a Langevin thermostat (NVT), without it constant energy (NVE, velocity Verlet).
    seed : int
        Seed of the thermostat's noise.
    every : int
        Steps between two samples.
    trajectory : path, optional
        ASE trajectory to write the samples to.
    progress : str, optional
        Title of a progress bar; without it none is shown.

    Returns
    -------
    Run
        Samples, the first one before the first step.

    Raises
    ------
    ValueError
        If `n_steps`, `timestep` or `every` is not positive.
    """
    if min(n_steps, timestep, every) <= 0:
        raise ValueError(f"steps must be positive, got `n_steps` {n_steps}, `timestep` {timestep} fs, `every` {every}")
    integrator = _integrator(atoms, timestep, temperature, seed)
    process = psutil.Process()
    freedom = 3 * len(atoms) - (_resting(atoms) if temperature is None else 0)
    samples: list[tuple[float, ...]] = []

    def sample() -> None:
        potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
        time, memory = integrator.nsteps * timestep, process.memory_info().rss / 1e6
        samples.append((time, potential, potential + kinetic, 2.0 * kinetic / (kB * freedom), memory))

    integrator.attach(sample, interval=every)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=n_steps, desc=progress, unit="step", mininterval=1.0, disable=progress is None)
        )
        if trajectory is not None:
            writer = stack.enter_context(Trajectory(str(trajectory), "w", atoms))
            integrator.attach(writer.write, interval=every)
        integrator.attach(lambda: bar.update(integrator.nsteps - bar.n), interval=every)
        integrator.run(n_steps)
        bar.update(n_steps - bar.n)
    return Run(*(np.array(column) for column in zip(*samples, strict=True)))


def _integrator(atoms: ase.Atoms, timestep: float, temperature: float | None, seed: int) -> MolecularDynamics:
    if temperature is None:
        return VelocityVerlet(atoms, timestep * fs)
    return Langevin(
        atoms,
        timestep * fs,
        temperature_K=temperature,
        friction=_FRICTION / fs,
        fixcm=False,
        rng=np.random.default_rng(seed),
    )


def measure_drift(
    atoms: ase.Atoms,
    duration: float = 10.0,
    timestep: float = 0.5,
    temperature: float = 300.0,
    equilibration: float = 1.0,
    seed: int = 0,
    progress: str | None = None,
) -> Drift:
    """Drift of the total energy at constant energy, after a thermostatted start.

    Parameters
    ----------
    atoms : ase.Atoms
        With a calculator; moved in place. A relaxed structure is the best start.
    duration, equilibration : float, ps
        Of the NVE run that is measured and of the Langevin run before it.
    timestep : float, fs
        0.5 fs resolves bonds to hydrogen.
    temperature : float, K
    progress : str, optional
        Title of a progress bar.

    Returns
    -------
    Drift
    """
    thermalise(atoms, temperature, seed)
    if equilibration > 0:
        run_dynamics(atoms, round(1000 * equilibration / timestep), timestep, temperature, seed=seed)
        stop_drifting(atoms)
    run = run_dynamics(atoms, round(1000 * duration / timestep), timestep, progress=progress)
    return energy_drift(run, len(atoms))


def energy_drift(run: Run, n_atoms: int) -> Drift:
    """Straight line through the total energy of an NVE run.

    Raises
    ------
    ValueError
        If the run has fewer than eight samples.
    """
    growth = memory_growth(run)
    times = run.times / 1000.0
    per_atom = (run.total_energies - run.total_energies[0]) / n_atoms
    slope, intercept = np.polyfit(times, per_atom, 1)
    residual = per_atom - (slope * times + intercept)
    return Drift(
        drift=float(slope),
        fluctuation=float(np.sqrt(np.mean(residual**2))),
        temperature=float(run.temperatures.mean()),
        duration=float(times[-1] - times[0]),
        memory_growth=growth,
    )


def memory_growth(run: Run) -> float:
    """Growth of the process's memory in a run, in MB.

    The median of the last quarter of the samples minus that of the second quarter: allocators and caches fill in
    the first, which is no leak.

    Raises
    ------
    ValueError
        If the run has fewer than eight samples.
    """
    quarter = len(run.memory) // 4
    if quarter < 2:
        raise ValueError(f"a growth needs at least 8 samples, got {len(run.memory)}; run longer or sample more often")
    return float(np.median(run.memory[-quarter:]) - np.median(run.memory[quarter : 2 * quarter]))


def survival_time(
    atoms: ase.Atoms, duration: float = 20.0, temperature: float = 500.0, timestep: float = 0.5, seed: int = 0
) -> float:
    """Picoseconds of thermostatted dynamics until a bond breaks, or the whole duration.

    A bond breaks when its length differs from that at the start by more than 0.5 Å. Reactions take longer than this at
    500 K, so a molecule that does not survive fell into a hole of its potential.

    Parameters
    ----------
    atoms : ase.Atoms
        With a calculator, near a minimum; moved in place.
    duration : float, ps
    temperature : float, K
    timestep : float, fs

    Returns
    -------
    float
        ps, in steps of ten time steps. 0 if the atoms are bonded to nothing.
    """
    lengths = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    radii = covalent_radii[atoms.numbers]
    one, other = np.nonzero(np.triu(lengths < _BONDED * (radii[:, None] + radii), k=1))
    start = lengths[one, other]
    if not len(start):
        return 0.0
    thermalise(atoms, temperature, seed)
    integrator = _integrator(atoms, timestep, temperature, seed)
    every = 10
    n_blocks = max(1, round(1000.0 * duration / (every * timestep)))
    for block in range(n_blocks):
        integrator.run(every)
        now = atoms.get_all_distances(mic=bool(atoms.pbc.any()))[one, other]
        if not np.all(np.abs(now - start) <= _BROKEN):  # NaN breaks too
            return block * every * timestep / 1000.0
    return n_blocks * every * timestep / 1000.0
