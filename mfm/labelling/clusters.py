"""Geometries of dimers and clusters: molecules placed against each other, and relaxed or heated from there.

Half of the geometries are contacts: monomers, themselves distorted, in random orientations at 0.8 to 2 times the
distance at which their van der Waals spheres touch. The others come from GFN2-xTB relaxations of such contacts,
and from dynamics that start there; where molecules react on the way, as ``[NH4+].[OH-]``
do, the geometry is not used.
"""

import ase.data
import numpy as np
from ase import units as ase_units
from ase.calculators.calculator import CalculationFailed
from ase.md.langevin import Langevin
from ase.optimize import BFGS

from mfm.labelling import geometries
from mfm.labelling.levels import TightBindingLevel
from mfm.labelling.sampling import Sample, sample_molecule
from mfm.labelling.xtb import attach_calculator
from mfm.structure import Structure

__all__ = ["sample_cluster"]

_CLOSEST, _FARTHEST = 0.8, 2.0
"""Range of contacts, in sums of van der Waals radii."""
_TURNS = ("contact", "relaxed", "contact", "md300")
_MONOMER_ORIGINS = ("modes", "md300")
_N_MONOMERS = 4
"""Geometries of each monomer, the equilibrium among them."""
_CAP = 4.0
"""Highest energy above the separate molecules as placed, eV."""


class _Cluster:
    """Generators of one cluster, all from one random stream."""

    def __init__(self, smiles: str, seed: int) -> None:
        self.smiles = geometries.canonical_smiles(smiles)
        self.parts = geometries.fragments(self.smiles)
        self.random = np.random.default_rng(seed)
        self.level = TightBindingLevel()
        self.monomers = [
            [sample.structure for sample in sample_molecule(part, _N_MONOMERS, seed, _MONOMER_ORIGINS)]
            if len(atoms) > 1
            else geometries.conformers(part, 1, seed % 2**31)
            for part, atoms in self.parts
        ]

    def contact(self) -> Structure:
        """Monomers in random orientations; each new one touches those placed before."""
        chosen = [several[int(self.random.integers(len(several)))] for several in self.monomers]
        n_atoms = sum(len(structure) for structure in chosen)
        numbers, positions = np.zeros(n_atoms, dtype=np.int64), np.zeros((n_atoms, 3))
        placed: list[int] = []
        for (_, atoms), monomer in zip(self.parts, chosen, strict=True):
            numbers[atoms] = monomer.atomic_numbers
            turned = monomer.positions @ _random_rotation(self.random).T
            if placed:
                turned = self._touching(numbers, positions, placed, (atoms, turned))
            positions[atoms] = turned
            placed += atoms.tolist()
        positions -= positions.mean(axis=0)
        charge = sum(structure.charge for structure in chosen)
        unpaired = sum((structure.multiplicity or 1) - 1 for structure in chosen)
        return Structure(numbers, np.round(positions, 6), charge=charge, multiplicity=unpaired + 1)

    def _touching(
        self, numbers: np.ndarray, positions: np.ndarray, placed: list[int], new: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray:
        """Positions of a new monomer, pushed out along a random direction until its closest contact is as drawn."""
        atoms, turned = new
        direction = self.random.normal(size=3)
        direction /= np.linalg.norm(direction)
        ratio = self.random.uniform(_CLOSEST, _FARTHEST)
        radii = ase.data.vdw_radii[numbers]
        reach = ratio * (radii[placed][:, None] + radii[atoms][None, :])
        centre = positions[placed].mean(axis=0)
        distance = 0.0
        while True:
            moved = turned - turned.mean(axis=0) + centre + distance * direction
            apart = np.linalg.norm(positions[placed][:, None] - moved[None], axis=-1)
            if (apart >= reach).all():
                return moved
            distance += 0.02

    def relaxed(self) -> Structure:
        """A contact after some steps downhill: near a minimum of the cluster."""
        start = self.contact()
        atoms = attach_calculator(start, self.level)
        BFGS(atoms, logfile=None).run(fmax=0.05, steps=100)
        return self._of(atoms.positions, start)

    def dynamics(self) -> Structure:
        """A relaxed contact after 200 fs at 300 K."""
        start = self.relaxed()
        atoms = attach_calculator(start, self.level)
        widths = np.sqrt(atoms.get_masses() * ase_units.kB * 600)[:, None]
        atoms.set_momenta(self.random.standard_normal((len(atoms), 3)) * widths)
        dynamics = Langevin(
            atoms,
            0.5 * ase_units.fs,
            temperature_K=300,
            friction=0.02 / ase_units.fs,
            rng=self.random,
            fixcm=False,
        )
        dynamics.run(400)
        return self._of(atoms.positions, start)

    @staticmethod
    def _of(positions: np.ndarray, like: Structure) -> Structure:
        centred = positions - positions.mean(axis=0)
        return Structure(like.atomic_numbers, np.round(centred, 6), charge=like.charge, multiplicity=like.multiplicity)

    def energy(self, structure: Structure) -> float:
        return float(attach_calculator(structure, self.level).get_potential_energy())


def _random_rotation(random: np.random.Generator) -> np.ndarray:
    """Uniform rotation matrix, from a random unit quaternion (Shoemake, Graphics Gems III, 124 (1992))."""
    w, x, y, z = (q := random.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def sample_cluster(smiles: str, n_samples: int, seed: int) -> list[Sample]:
    """Distinct geometries of a cluster ``A.B`` or ``A.B.C``, in turn contacts, relaxed ones and dynamics.

    Raises
    ------
    ValueError
        If the SMILES names one molecule, or no acceptable, distinct geometry is found in 20 trials.
    """
    cluster = _Cluster(smiles, seed)
    if len(cluster.parts) < 2:
        raise ValueError(f"a cluster must have two or more molecules separated by `.`, got `{smiles}`")
    make = {"contact": cluster.contact, "relaxed": cluster.relaxed, "md300": cluster.dynamics}
    # monomers as sampled are within 1 eV of their minima
    zero = sum(cluster.energy(several[0]) for several in cluster.monomers)
    samples: list[Sample] = []
    fingerprints: list[np.ndarray] = []
    trials = reacted = 0
    while len(samples) < n_samples:
        origin = _TURNS[(len(samples) + seed) % len(_TURNS)]
        trials += 1
        if trials > 20 * n_samples:
            raise ValueError(
                f"`{smiles}` must give {n_samples} distinct geometries, got {len(samples)} in {trials} trials,"
                f" in {reacted} of which molecules reacted; ask for fewer, or name what they become"
            )
        try:
            structure = make[origin]()
            excess = cluster.energy(structure) - zero
        except CalculationFailed:
            continue
        # contacts are placed monomers, which have been judged
        if origin != "contact" and not geometries.keeps_bonds(structure, cluster.smiles):
            reacted += 1
            continue
        mark = geometries.fingerprint(structure)
        if excess < _CAP and all(np.abs(mark - other).max() > 0.01 for other in fingerprints):
            samples.append(Sample(structure, cluster.smiles, origin, ".".join(part for part, _ in cluster.parts)))
            fingerprints.append(mark)
    return samples
