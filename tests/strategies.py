"""Hypothesis strategies for molecules, crystals, labels."""

import hypothesis.strategies as st
import numpy as np
from hypothesis.extra import numpy as npst

from mfm.data import DatasetCard, Record
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure

ELEMENTS = (1, 6, 7, 8, 16)
SPACING = 1.2
"""Å; grid of the atoms. They are moved off it by less than a quarter, so no two come close."""

LEVELS = {"dft": LevelOfTheory("PBE", "def2-SVP"), "ccsdt": LevelOfTheory("CCSD(T)", "cc-pVTZ", frozen_core=True)}
CARD = DatasetCard(name="generated", levels=LEVELS)


@st.composite
def positions(draw: st.DrawFn, n_atoms: int) -> np.ndarray:
    """(n_atoms, 3), Å, no two closer than half the spacing."""
    edge = int(np.ceil(n_atoms ** (1 / 3))) + 1
    places = draw(st.lists(st.integers(0, edge**3 - 1), min_size=n_atoms, max_size=n_atoms, unique=True))
    grid = np.stack(np.unravel_index(places, (edge,) * 3), axis=1)
    shifts = draw(npst.arrays(np.float64, (n_atoms, 3), elements=st.floats(-0.25, 0.25)))
    return SPACING * (grid + shifts)


@st.composite
def molecules(draw: st.DrawFn, max_atoms: int = 8, charges: tuple[int, ...] = (-1, 0, 1)) -> Structure:
    """Structure without periodicity; its charge never exceeds its electrons."""
    n_atoms = draw(st.integers(1, max_atoms))
    numbers = np.array(draw(st.lists(st.sampled_from(ELEMENTS), min_size=n_atoms, max_size=n_atoms)))
    return Structure(numbers, draw(positions(n_atoms)), charge=draw(st.sampled_from(charges)))


@st.composite
def crystals(draw: st.DrawFn, max_atoms: int = 6) -> Structure:
    """Structure in a triclinic cell, periodic in at least one direction."""
    n_atoms = draw(st.integers(1, max_atoms))
    numbers = np.array(draw(st.lists(st.sampled_from(ELEMENTS), min_size=n_atoms, max_size=n_atoms)))
    size = SPACING * (int(np.ceil(n_atoms ** (1 / 3))) + 2)
    shear = draw(npst.arrays(np.float64, (3, 3), elements=st.floats(-0.1, 0.1)))
    pbc = draw(st.lists(st.booleans(), min_size=3, max_size=3).filter(any))
    return Structure(numbers, draw(positions(n_atoms)), size * (np.eye(3) + shear), np.array(pbc))


@st.composite
def records(draw: st.DrawFn, geometries: st.SearchStrategy[Structure] | None = None) -> Record:
    """Record with any subset of energies and forces at two levels, charges, a dipole, flags."""
    structure = draw(molecules() if geometries is None else geometries)
    n = len(structure)
    numbers = st.floats(-1e4, 1e4)
    shapes = {"energy_dft": (), "forces_dft": (n, 3), "energy_ccsdt": (), "charges_dft": (n,), "dipole_dft": (3,)}
    chosen = draw(st.sets(st.sampled_from(sorted(shapes))))
    labels = {task: draw(npst.arrays(np.float64, shapes[task], elements=numbers)) for task in sorted(chosen)}
    flags = draw(st.dictionaries(st.sampled_from(["t1", "wall_time_s"]), st.floats(0, 1e3)))
    origin = draw(st.sampled_from(["", "md-300K", "normal-mode"]))
    return Record(structure, labels, draw(st.sampled_from(["", "a", "b"])), origin, flags)


def random_records(n_records: int, seed: int = 0, molecules: int = 5, forces: bool = True) -> list[Record]:
    """Records of a few molecules with `dft` energies and forces, every third also with a `ccsdt` energy."""
    rng = np.random.default_rng(seed)
    compositions = [rng.choice(ELEMENTS[:4], size=rng.integers(2, 9)) for _ in range(molecules)]
    grid = SPACING * np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), axis=1)
    made = []
    for i in range(n_records):
        numbers = compositions[i % molecules]
        place = grid[: len(numbers)] + rng.uniform(-0.2, 0.2, (len(numbers), 3))
        labels = {"energy_dft": np.array(-1000.0 * numbers.sum() + rng.normal())}
        if forces:
            labels["forces_dft"] = rng.normal(size=(len(numbers), 3))
        if i % 3 == 0:
            labels["energy_ccsdt"] = labels["energy_dft"] + 0.3 * len(numbers)
        made.append(Record(Structure(numbers, place), labels, molecule=f"m{i % molecules}"))
    return made
