"""Dynamics: a conservative potential does not drift, a flawed one is caught, and runs repeat."""

import mmap
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.io import read
from ase.units import kB

from mfm import MFMCalculator
from mfm.evaluation.dynamics import (
    Run,
    energy_drift,
    measure_drift,
    memory_growth,
    run_dynamics,
    survival_time,
    thermalise,
)
from tests.tiny import tiny_model


class Springs(Calculator):
    """Harmonic springs between all atoms; `error` is a fraction of the velocity-like swirl added to the forces."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, reference: np.ndarray, swirl: float = 0.0) -> None:
        super().__init__()
        self.reference = reference
        self.swirl = swirl

    def calculate(self, atoms: ase.Atoms, properties: list[str], system_changes: list[str]) -> None:
        super().calculate(atoms, properties, system_changes)
        displacements = atoms.positions - self.reference
        # a force field with a curl is the gradient of no energy
        curl = np.cross(displacements, [0.0, 0.0, 1.0])
        self.results["energy"] = float(2.5 * (displacements**2).sum())
        self.results["forces"] = -5.0 * displacements + self.swirl * curl


def water(swirl: float = 0.0) -> ase.Atoms:
    atoms = molecule("H2O")
    atoms.calc = Springs(atoms.positions.copy(), swirl)
    return atoms


def test_slope_of_a_known_run() -> None:
    times = np.linspace(0, 2000, 41)
    wiggle = 1e-3 * np.sin(np.arange(41) * np.pi)
    run = Run(times, np.zeros(41), -4000.0 + 3 * (2e-3 * times / 1000 + wiggle), np.full(41, 300.0), np.full(41, 512.0))
    drift = energy_drift(run, n_atoms=3)
    assert drift.drift == pytest.approx(2e-3, rel=1e-6)
    assert drift.fluctuation == pytest.approx(0.0, abs=1e-9)
    assert drift.duration == pytest.approx(2.0)
    assert drift.temperature == 300.0
    assert drift.memory_growth == 0.0


def test_drift_and_growth_need_samples() -> None:
    with pytest.raises(ValueError, match="a growth needs at least 8 samples, got 2"):
        energy_drift(Run(*(np.zeros(2) for _ in range(5))), n_atoms=3)


def test_conservative_forces_do_not_drift_and_others_do() -> None:
    good = measure_drift(water(), duration=0.5, equilibration=0.1)
    bad = measure_drift(water(swirl=0.5), duration=0.5, equilibration=0.1)
    assert abs(good.drift) < 1e-4
    assert good.duration == pytest.approx(0.5)
    assert abs(bad.drift) > 1e-3


def test_drift_of_a_model() -> None:
    atoms = molecule("H2O")
    # the surface of random weights is rough: a small step and a low temperature leave only what a wrong force would do
    atoms.calc = MFMCalculator(tiny_model(), fidelity="ccsdt", device="cpu")
    drift = measure_drift(atoms, duration=0.02, timestep=0.1, temperature=30.0, equilibration=0.0)
    assert abs(drift.drift) < 5e-3


def test_thermalise() -> None:
    atoms = ase.Atoms("Ar512", np.random.default_rng(0).random((512, 3)) * 40)
    thermalise(atoms, 300.0, seed=1)
    # standard error of a temperature from 3 N momenta is T √(2 / 3N), 11 K here
    assert atoms.get_temperature() == pytest.approx(300.0, abs=40.0)
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(atoms.get_angular_momentum(), 0.0, atol=1e-6)
    assert atoms.get_kinetic_energy() == pytest.approx(1.5 * kB * atoms.get_temperature() * 512, rel=0.01)


@pytest.mark.parametrize(("symbols", "motions"), [("OHH", 3), ("OCO", 4), ("HCl", 1)])
def test_taking_out_a_rotation_heats_no_vibration(symbols: str, motions: int) -> None:
    bend = 0.5 if motions == 3 else 0.0
    places = np.array([[0.0, 0.0, 0.0], [bend, 0.0, 1.2], [bend, 0.0, -1.2]])
    atoms = ase.Atoms(symbols, places[: len(ase.Atoms(symbols))])
    atoms.calc = Springs(atoms.positions.copy())
    temperatures, energies = [], []
    for seed in range(100):
        thermalise(atoms, 300.0, seed)
        energies.append(atoms.get_kinetic_energy())
        moved = atoms.copy()
        moved.calc = atoms.calc
        temperatures.append(run_dynamics(moved, 1).temperatures[0])
    # each motion that is left has kT/2; √(2/(100 motions)) of standard error
    assert np.mean(energies) == pytest.approx(0.5 * motions * kB * 300.0, rel=0.3)
    assert np.mean(temperatures) == pytest.approx(np.mean(energies) / (0.5 * motions * kB), rel=1e-6)


def test_runs_repeat_and_global_random_state_is_left_alone() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    finals = []
    for _ in range(2):
        atoms = water()
        thermalise(atoms, 300.0, seed=5)
        run = run_dynamics(atoms, 50, temperature=300.0, seed=5)
        finals.append(atoms.positions)
    np.testing.assert_array_equal(finals[0], finals[1])
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.testing.assert_allclose(run.times, [0, 5, 10, 15, 20, 25])


def test_langevin_reaches_its_temperature() -> None:
    atoms = water()
    run = run_dynamics(atoms, 4000, timestep=1.0, temperature=300.0, seed=2)
    # springs of 9 coordinates: potential and kinetic energy share k T / 2 each
    assert run.potential_energies[100:].mean() == pytest.approx(4.5 * kB * 300, rel=0.25)


def test_trajectory_and_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atoms = water()
    thermalise(atoms, 300.0, seed=0)
    run_dynamics(atoms, 20, trajectory=tmp_path / "run.traj", progress="water")
    frames = read(tmp_path / "run.traj", ":")
    assert len(frames) == 3
    np.testing.assert_allclose(frames[-1].positions, atoms.positions)
    assert "water: 100%" in capsys.readouterr().err
    run_dynamics(atoms, 20)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{"n_steps": 0}, {"n_steps": 5, "timestep": -1.0}, {"n_steps": 5, "every": 0}])
def test_steps_must_be_positive(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="steps must be positive, got `n_steps`"):
        run_dynamics(water(), **options)  # type: ignore[arg-type]


def test_growth_leaves_out_the_first_quarter() -> None:
    filling = np.concatenate([np.linspace(0, 100, 10), np.full(30, 100.0)])
    leaking = np.linspace(0, 40, 40)
    columns = [np.arange(40.0)] * 4
    assert memory_growth(Run(*columns, filling)) == 0.0
    assert memory_growth(Run(*columns, leaking)) == pytest.approx(20, abs=2)


class Leaking(Springs):
    """Keeps 0.4 MB at every step, straight from the system: the heap may have room left by earlier tests."""

    def calculate(self, atoms: ase.Atoms, properties: list[str], system_changes: list[str]) -> None:
        super().calculate(atoms, properties, system_changes)
        block = mmap.mmap(-1, 400_000)
        block.write(b"1" * len(block))
        self.kept = [*getattr(self, "kept", []), block]


def test_leak_is_seen() -> None:
    atoms = water()
    thermalise(atoms, 300.0, seed=0)
    assert memory_growth(run_dynamics(atoms, 200)) < 5
    atoms.calc = Leaking(atoms.positions.copy())
    assert memory_growth(run_dynamics(atoms, 200)) > 20


def dynamics_of_a_model(n_steps: int) -> Run:
    atoms = molecule("CH3CH2OH")
    atoms.calc = MFMCalculator(tiny_model(), fidelity="ccsdt", device="cpu")
    thermalise(atoms, 30.0, seed=0)
    return run_dynamics(atoms, n_steps, timestep=0.1)


def test_calculator_keeps_its_memory() -> None:
    # steps that each kept their autograd graph would hold tens of MB
    assert memory_growth(dynamics_of_a_model(200)) < 5


@pytest.mark.slow
def test_memory_over_twenty_thousand_steps() -> None:
    assert memory_growth(dynamics_of_a_model(20_000)) < 5


def test_springs_survive_and_a_repulsive_potential_does_not() -> None:
    assert survival_time(water(), duration=0.05) == pytest.approx(0.05)
    atoms = water()
    atoms.calc.reference = 2.0 * atoms.positions  # springs that want bonds twice as long
    ended = survival_time(atoms, duration=1.0, temperature=1.0)
    # 5 eV/Å² and the mass of hydrogen: bonds have grown by 0.5 of 0.96 Å within a quarter of a 28 fs period
    assert ended == pytest.approx(0.005)
    assert survival_time(ase.Atoms("H2", [[0, 0, 0], [0, 0, 9.0]])) == 0.0
