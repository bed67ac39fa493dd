"""Off-equilibrium geometries on the GFN2-xTB surface: dynamics, normal modes, torsions, stretched bonds.

Every sample keeps the molecule's bonds (none longer than 1.5 times its equilibrium length) and stays below
an energy cap, so that a closed-shell reference describes it; only where `stretched` and `compressed` bonds are asked
for may one bond break or be pressed into the wall. The same seed gives the same geometries.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ase import units as ase_units
from ase.calculators.calculator import CalculationFailed
from ase.md.langevin import Langevin
from ase.optimize import BFGS

from mfm.labelling import geometries
from mfm.labelling.levels import TightBindingLevel
from mfm.labelling.xtb import attach_calculator
from mfm.structure import Structure
from mfm.units import BOLTZMANN

__all__ = ["ORIGINS", "Sample", "check_origins", "sample_molecule"]

_STEP_FS = 0.5
_FRAMES_APART = 200
"""Steps between frames: 100 fs, after which a bond has forgotten its phase."""
_SOFTEST = 0.05
"""eV/Å²; softer modes are treated as this stiff, or their amplitudes would leave the harmonic region."""
_CAP_PER_ATOM, _CAP = 0.45, 4.0
"""Highest energy above the minimum that is kept, eV per atom and eV."""
_REACTIVE_CAP = 15.0
"""The same where a bond is stretched or compressed on purpose: above any bond energy, below nonsense."""
_REACTIVE = {"stretched": (1.35, 2.5), "compressed": (0.65, 0.85)}
"""Origins that are not bound to keep the bonds, and what they multiply one bond length by."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A geometry to label."""

    structure: Structure
    molecule: str
    """Canonical SMILES."""
    origin: str
    """How the geometry was made: ``equilibrium``, ``md600``, ``modes``, ``torsion``, ``bond``, ``stretched``."""
    parent: str = ""
    """Molecule that a radical, an ion or a cluster was derived from; empty if from none."""


class _Sampler:
    """Generators of one molecule, all from one random stream."""

    def __init__(self, smiles: str, seed: int, multiplicity: int | None = None) -> None:
        self.smiles = geometries.canonical_smiles(smiles)
        self.random = np.random.default_rng(seed)
        self.level = TightBindingLevel()
        found = geometries.conformers(self.smiles, n_trials=10, seed=seed % (2**31), multiplicity=multiplicity)
        self.minima = [self._relax(structure) for structure in found[:3]]
        self.minima.sort(key=lambda pair: pair[1])
        self.lowest, self.minimum_energy = self.minima[0]
        self.bonds = geometries.bonds(self.smiles)
        self.dihedrals = geometries.rotatable_dihedrals(self.smiles)
        self.lengths = self._bond_lengths(self.lowest)
        self.constants, self.modes = self._normal_modes()

    def _relax(self, structure: Structure) -> tuple[Structure, float]:
        atoms = attach_calculator(structure, self.level)
        BFGS(atoms, logfile=None).run(fmax=0.005, steps=300)
        relaxed = self._of(atoms.positions, structure)
        # ions and radicals may fall apart, close a ring or move a proton on the way
        if changed := geometries.changed_bond(relaxed, self.smiles):
            raise ValueError(
                f"`{self.smiles}` must keep its bonds when GFN2-xTB relaxes it, got another molecule: {changed}; give"
                " the SMILES of what it becomes (`A.B` if it falls apart), or its geometries in a file (.xyz)"
            )
        return relaxed, float(atoms.get_potential_energy())

    @staticmethod
    def _of(positions: np.ndarray, like: Structure) -> Structure:
        # what is stored is what is labelled: the hash, the store and the calculation see the same digits
        centred = positions - positions.mean(axis=0)
        return Structure(like.atomic_numbers, np.round(centred, 6), charge=like.charge, multiplicity=like.multiplicity)

    def _bond_lengths(self, structure: Structure) -> np.ndarray:
        i, j = self.bonds.T
        return np.linalg.norm(structure.positions[i] - structure.positions[j], axis=1)

    def _normal_modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Force constants (n_modes,), eV/Å², and mass-weighted modes (n_modes, n_atoms, 3) of the lowest minimum."""
        atoms = attach_calculator(self.lowest, self.level)
        start, n_atoms, step = atoms.positions.copy(), len(atoms), 0.005
        hessian = np.zeros((3 * n_atoms, 3 * n_atoms))
        for k in range(3 * n_atoms):
            for sign in (1, -1):
                moved = start.copy()
                moved.flat[k] += sign * step
                atoms.positions = moved
                hessian[k] -= sign * atoms.get_forces().ravel() / (2 * step)
        scale = 1 / np.sqrt(np.repeat(atoms.get_masses(), 3))
        values, vectors = np.linalg.eigh((hessian + hessian.T) / 2 * np.outer(scale, scale))
        linear = np.linalg.matrix_rank(start - start.mean(axis=0), tol=1e-2) == 1
        n_rigid = 5 if linear else 6
        keep = np.argsort(np.abs(values))[n_rigid:]
        cartesian = (vectors * scale[:, None]).T[keep]
        norms = np.linalg.norm(cartesian, axis=1)
        modes = (cartesian / norms[:, None]).reshape(-1, n_atoms, 3)
        return np.maximum(np.abs(values[keep]) / norms**2, _SOFTEST), modes

    def equilibrium(self) -> Structure:
        """The lowest minimum, then the others in turn."""
        structure, _ = self.minima[0]
        self.minima = [*self.minima[1:], self.minima[0]]
        return structure

    def dynamics(self, temperature: float) -> Iterator[Structure]:
        """Frames of Langevin dynamics, 100 fs apart, after 200 fs; restarted from a minimum when a bond breaks."""
        while True:
            start, _ = self.minima[int(self.random.integers(len(self.minima)))]
            atoms = attach_calculator(start, self.level)
            # twice the temperature: from a minimum, half of the kinetic energy turns into potential energy
            thermal = ase_units.kB * (2 * temperature)
            widths = np.sqrt(atoms.get_masses() * thermal)[:, None]
            atoms.set_momenta(self.random.standard_normal((len(atoms), 3)) * widths)
            dynamics = Langevin(
                atoms,
                _STEP_FS * ase_units.fs,
                temperature_K=temperature,
                friction=0.02 / ase_units.fs,
                rng=self.random,
                fixcm=False,
            )
            dynamics.run(2 * _FRAMES_APART)
            for _ in range(20):
                if not self.is_acceptable(atoms.positions):
                    break
                yield self._of(atoms.positions, start)
                dynamics.run(_FRAMES_APART)

    def normal_modes(self) -> Structure:
        """Displacement along all modes at 300 to 1000 K (Smith et al., Chem. Sci. 8, 3192 (2017))."""
        temperature = self.random.uniform(300, 1000)
        shares = self.random.dirichlet(np.ones(len(self.constants))) * self.random.uniform()
        amplitudes = np.sqrt(3 * shares * len(self.lowest) * BOLTZMANN * temperature / self.constants)
        amplitudes = np.minimum(amplitudes, 0.5) * self.random.choice([-1.0, 1.0], size=len(self.constants))
        return self._of(self.lowest.positions + np.einsum("k,kax->ax", amplitudes, self.modes), self.lowest)

    def torsion(self) -> Structure:
        """A minimum with one bond rotated by any angle, and a little noise."""
        dihedral = self.dihedrals[int(self.random.integers(len(self.dihedrals)))]
        atoms = self.lowest.to_ase()
        mask = np.zeros(len(atoms), dtype=int)
        mask[geometries.side_of_bond(self.smiles, dihedral[1], dihedral[2])] = 1
        atoms.rotate_dihedral(*dihedral, angle=float(self.random.uniform(20, 340)), mask=mask)
        return self._of(atoms.positions + self.random.normal(scale=0.02, size=(len(atoms), 3)), self.lowest)

    def bond(self) -> Structure:
        """A minimum with one bond at 0.85 to 1.35 times its length, and a little noise."""
        return self.one_bond(0.85, 1.35)

    def one_bond(self, shortest: float, longest: float) -> Structure:
        """A minimum with one bond at this many times its length, and a little noise."""
        i, j = self.bonds[int(self.random.integers(len(self.bonds)))].tolist()
        positions = self.lowest.positions.copy()
        moving = geometries.side_of_bond(self.smiles, i, j)
        if len(moving) == len(positions) or i in moving:
            moving = np.array([j])
        positions[moving] += (positions[j] - positions[i]) * self.random.uniform(shortest - 1, longest - 1)
        return self._of(positions + self.random.normal(scale=0.02, size=positions.shape), self.lowest)

    def is_acceptable(self, positions: np.ndarray, origin: str = "") -> bool:
        """Whether bonds hold and the energy stays below the cap."""
        structure = self._of(positions, self.lowest)
        ratios = self._bond_lengths(structure) / self.lengths
        cap = min(_CAP, _CAP_PER_ATOM * len(structure) + 0.5)
        if origin in _REACTIVE:
            cap = _REACTIVE_CAP
        elif ratios.max(initial=1.0) > 1.5 or ratios.min(initial=1.0) < 0.7:
            return False
        atoms = attach_calculator(structure, self.level)
        try:
            return float(atoms.get_potential_energy()) - self.minimum_energy < cap
        # far from equilibrium the tight-binding SCF may fail: such a geometry is not used
        except CalculationFailed:
            return False


_PATTERN = ("md600", "modes", "md1000", "torsion", "md300", "modes", "md600", "bond", "md1000", "torsion")
"""Origins in turn after the equilibrium geometry: 50 % dynamics, 20 % modes, 20 % torsions, 10 % bonds."""


ORIGINS = ("equilibrium", "modes", "torsion", "bond", "stretched", "compressed", "md<kelvin>")
"""Ways to make geometries; one bond gets 0.85 to 1.35 (``bond``), 1.35 to 2.5 or 0.65 to 0.85 times its length."""


def check_origins(origins: Sequence[str]) -> None:
    """Refuse what is not one of :data:`ORIGINS`.

    Raises
    ------
    ValueError
        If a name is unknown, or there is none.
    """
    unknown = [name for name in origins if name not in ORIGINS[:-1] and not re.fullmatch(r"md[1-9]\d{1,3}", name)]
    if unknown or not origins:
        raise ValueError(f"origins must be among {', '.join(ORIGINS)}, got {', '.join(unknown) or 'none'}")


def sample_molecule(
    smiles: str,
    n_samples: int,
    seed: int,
    origins: Sequence[str] = _PATTERN,
    multiplicity: int | None = None,
) -> list[Sample]:
    """Distinct geometries of one molecule, the equilibrium first, then a mixture of origins.

    Parameters
    ----------
    seed : int
        Fixes conformers, velocities and displacements; it also shifts the order of origins, so that molecules
        with few samples do not all get the same ones.
    origins : sequence of str
        Taken in turn, of :data:`ORIGINS`; those that a molecule cannot have are replaced by ``modes``. The default
        also has the equilibria of further conformers now and then.
    multiplicity : int, optional
        2S + 1; what the SMILES implies if not given.

    Raises
    ------
    ValueError
        If a conformer becomes another molecule when it is relaxed, or a generator finds no acceptable, distinct
        geometry in 200 trials.
    """
    check_origins(origins)
    sampler = _Sampler(smiles, seed, multiplicity)
    samples = [Sample(sampler.equilibrium(), sampler.smiles, "equilibrium")]
    fingerprints = [geometries.fingerprint(samples[0].structure)]
    make = _generators(sampler, origins)
    shift, trials = seed % len(origins), 0
    n_conformers = len(sampler.minima) if tuple(origins) == _PATTERN else 1
    while len(samples) < n_samples:
        origin = origins[(len(samples) - 1 + shift) % len(origins)]
        if len(samples) % 8 == 4 and (len(samples) // 8) + 1 < n_conformers:
            origin = "equilibrium"
        if (origin == "torsion" and not sampler.dihedrals) or (origin in _REACTIVE and not len(sampler.bonds)):
            origin = "modes"
        structure = make[origin]()
        trials += 1
        if trials > 200 * n_samples:
            raise ValueError(
                f"`{smiles}` must give {n_samples} distinct geometries, got {len(samples)}"
                f" in {trials} trials; ask for fewer"
            )
        mark = geometries.fingerprint(structure)
        # the one distance of a diatomic has little room
        apart = 0.01 if len(structure) > 2 else 0.002
        if all(np.abs(mark - other).max() > apart for other in fingerprints) and sampler.is_acceptable(
            structure.positions, origin
        ):
            samples.append(Sample(structure, sampler.smiles, origin))
            fingerprints.append(mark)
    return samples


def _generators(sampler: _Sampler, origins: Sequence[str]) -> dict[str, Callable[[], Structure]]:
    """Origin → function that makes the next geometry."""
    generators: dict[str, Callable[[], Structure]] = {
        "equilibrium": sampler.equilibrium,
        "modes": sampler.normal_modes,
        "torsion": sampler.torsion,
        "bond": sampler.bond,
    }
    for name, limits in _REACTIVE.items():
        generators[name] = functools.partial(sampler.one_bond, *limits)
    for name in sorted(set(origins)):
        if name.startswith("md"):
            generators[name] = functools.partial(next, sampler.dynamics(float(name[2:])))
    return generators
