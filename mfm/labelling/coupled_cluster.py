"""CCSD(T) at the basis-set limit: Hartree-Fock and MP2 extrapolated, CCSD(T) − MP2 added in a small basis.

    HF:  E_X = E∞ + A exp(−α √X), α = 5.46        MP2: E_X = E∞ + B X^−β, β = 3.05

with the exponents of cc-pV[TQ]Z (Neese and Valeev, J. Chem. Theory Comput. 7, 33 (2011),
doi:10.1021/ct100396y). Correlation energies are frozen-core throughout. The correction [CCSD(T) − MP2] is
smooth in the basis, which is what makes a triple-zeta-quality potential affordable: it differs from the same
correction in cc-pVTZ by at most 0.2 kcal/mol in the geometry differences we tried.

CCSD and CCSD(T) in one basis are here too, with PySCF's analytic forces where those are right.
"""

from typing import Any, NamedTuple

import numpy as np
from pyscf import cc, gto, scf
from pyscf.cc import ccsd_t_lambda as triples_lambda
from pyscf.data.elements import chemcore
from pyscf.grad import ccsd_t as triples_gradient
from pyscf.mp import dfmp2, dfump2

from mfm.labelling.defects import check_gradient
from mfm.labelling.levels import CompositeLevel, CoupledClusterLevel
from mfm.labelling.molecule import Labels, build_molecule, net_force_and_torque, orbital_gap
from mfm.structure import Structure
from mfm.units import BOHR, HARTREE

__all__ = ["CompositeParts", "composite_energy", "label_composite", "label_coupled_cluster"]


class CompositeParts(NamedTuple):
    """Energies that make up the composite, hartree; MP2 and CCSD(T) are correlation energies."""

    hf_small: float
    hf_large: float
    mp2_small: float
    mp2_large: float
    mp2_correction: float
    cc_correction: float


def composite_energy(parts: CompositeParts, level: CompositeLevel) -> float:
    """Composite energy, hartree."""
    return (
        parts.hf_large
        + level.hf_factor * (parts.hf_large - parts.hf_small)
        + parts.mp2_large
        + level.mp2_factor * (parts.mp2_large - parts.mp2_small)
        + parts.cc_correction
        - parts.mp2_correction
    )


def label_composite(structure: Structure, level: CompositeLevel) -> Labels:
    """Label one molecule with the composite CCSD(T) energy.

    Returns
    -------
    Labels
        ``energy`` in eV, and flags: ``t1`` and ``d1`` diagnostics, ``max_t2``, HF gap in eV, share of (T) in the
        correlation energy, ⟨S²⟩ of the reference.

    Raises
    ------
    ValueError
        If a Hartree-Fock or the CCSD iteration does not converge.
    """
    hf_small, mp2_small = _fitted(build_molecule(structure, level.small_basis), level)
    hf_large, mp2_large = _fitted(build_molecule(structure, level.large_basis), level)
    mp2, coupled, flags = _correction(build_molecule(structure, level.correction_basis), level)
    parts = CompositeParts(hf_small, hf_large, mp2_small, mp2_large, mp2, coupled)
    return Labels({"energy": np.asarray(composite_energy(parts, level) * HARTREE)}, flags)


def label_coupled_cluster(structure: Structure, level: CoupledClusterLevel) -> Labels:
    """Label one molecule with CCSD or CCSD(T) in one basis.

    Returns
    -------
    Labels
        ``energy`` eV, ``forces`` eV/Å if the level has them, and flags as :func:`label_composite` gives.

    Raises
    ------
    ValueError
        If the installed PySCF is known to get the gradient wrong, or Hartree-Fock or CCSD does not converge.
    """
    molecule = build_molecule(structure, level.basis)
    if level.forces and _is_correlated(molecule):
        check_gradient(is_open_shell=molecule.spin != 0, has_triples=level.triples, is_fitted=level.density_fitting)
    guess = _hartree_fock(molecule, level).density_fit(auxbasis=f"{molecule.basis}-jkfit").run()
    reference = guess
    if not level.density_fitting:
        reference = _hartree_fock(molecule, level)
        reference.kernel(dm0=guess.make_rdm1())
    _converged(reference, "Hartree-Fock")
    flags = {"gap": orbital_gap(reference), "s_squared": float(reference.spin_square()[0])}
    if not _is_correlated(molecule):
        values = {"energy": np.asarray(float(reference.e_tot) * HARTREE)}
        if level.forces:
            values["forces"] = -reference.nuc_grad_method().kernel() * (HARTREE / BOHR)
        return Labels(values, flags | {"t1": 0.0, "d1": 0.0, "max_t2": 0.0})
    solver = cc.CCSD(reference, frozen=_n_core_orbitals(molecule))
    solver.conv_tol, solver.max_cycle = level.cc_tolerance, 100
    solver.kernel()
    _converged(solver, "CCSD")
    triples = float(solver.ccsd_t()) if level.triples else 0.0
    flags |= _diagnostics(molecule, solver)
    values = {"energy": np.asarray((float(solver.e_tot) + triples) * HARTREE)}
    if level.forces:
        values["forces"] = _forces(solver, level)
        flags |= net_force_and_torque(structure, values["forces"])
    return Labels(values, flags)


def _forces(solver: Any, level: CoupledClusterLevel) -> np.ndarray:
    """Analytic forces, (n_atoms, 3), eV/Å."""
    if not level.triples:
        return -solver.nuc_grad_method().kernel() * (HARTREE / BOHR)
    # left to itself the gradient takes the multipliers of CCSD: 25 meV/Å off for water, without a warning
    integrals = solver.ao2mo()
    converged, l1, l2 = triples_lambda.kernel(
        solver, integrals, solver.t1, solver.t2, max_cycle=100, tol=level.cc_tolerance, verbose=0
    )
    if not converged:
        raise ValueError("the CCSD(T) multipliers must converge within 100 cycles, got none; leave the forces out")
    gradient = triples_gradient.Gradients(solver).kernel(solver.t1, solver.t2, l1, l2, eris=integrals)
    return -gradient * (HARTREE / BOHR)


def _converged(solver: Any, name: str) -> Any:
    if not solver.converged:
        raise ValueError(
            f"{name} in {solver.mol.basis} must converge within {solver.max_cycle} cycles, got none;"
            " the structure is recorded as failed"
        )
    return solver


def _hartree_fock(molecule: gto.Mole, level: CompositeLevel | CoupledClusterLevel) -> Any:
    solver = (scf.UHF if molecule.spin else scf.RHF)(molecule)
    solver.conv_tol, solver.max_cycle = level.hf_tolerance, 100
    return solver


def _n_core_orbitals(molecule: gto.Mole) -> int:
    return int(chemcore(molecule))


def _is_correlated(molecule: gto.Mole) -> bool:
    """Whether at least two electrons are outside the core: a hydrogen atom has no correlation energy."""
    return molecule.nelectron - 2 * _n_core_orbitals(molecule) >= 2


def _fitted(molecule: gto.Mole, level: CompositeLevel) -> tuple[float, float]:
    """Density-fitted HF energy and frozen-core MP2 correlation energy, hartree."""
    hartree_fock = _hartree_fock(molecule, level).density_fit(auxbasis=f"{molecule.basis}-jkfit")
    _converged(hartree_fock.run(), "Hartree-Fock")
    if not _is_correlated(molecule):
        return float(hartree_fock.e_tot), 0.0
    kind = dfump2.DFUMP2 if molecule.spin else dfmp2.DFRMP2
    perturbation = kind(hartree_fock, frozen=_n_core_orbitals(molecule))
    perturbation.with_df = perturbation.with_df.__class__(molecule, auxbasis=f"{molecule.basis}-ri")
    perturbation.kernel(with_t2=False)
    return float(hartree_fock.e_tot), float(perturbation.e_corr)


def _correction(molecule: gto.Mole, level: CompositeLevel) -> tuple[float, float, dict[str, float]]:
    """Frozen-core MP2 and CCSD(T) correlation energies with exact integrals, hartree, and diagnostics."""
    guess = _hartree_fock(molecule, level).density_fit(auxbasis=f"{molecule.basis}-jkfit").run()
    reference = _hartree_fock(molecule, level)
    reference.kernel(dm0=guess.make_rdm1())
    _converged(reference, "Hartree-Fock")
    flags = {"gap": orbital_gap(reference), "s_squared": float(reference.spin_square()[0])}
    if not _is_correlated(molecule):
        return 0.0, 0.0, flags | {"t1": 0.0, "d1": 0.0, "max_t2": 0.0, "triples_share": 0.0}
    solver = cc.CCSD(reference, frozen=_n_core_orbitals(molecule))
    solver.conv_tol, solver.max_cycle = level.cc_tolerance, 100
    solver.kernel()
    _converged(solver, "CCSD")
    triples = float(solver.ccsd_t())
    total = float(solver.e_corr) + triples
    flags |= _diagnostics(molecule, solver) | {"triples_share": triples / total if total else 0.0}
    return float(solver.emp2), total, flags


def _diagnostics(molecule: gto.Mole, solver: Any) -> dict[str, float]:
    """T1 (Lee and Taylor 1989), D1 (Janssen and Nielsen 1998) and the largest double amplitude."""
    singles = solver.t1 if isinstance(solver.t1, tuple) else (solver.t1, solver.t1)
    doubles = solver.t2 if isinstance(solver.t2, tuple) else (solver.t2,)
    electrons = molecule.nelectron - 2 * _n_core_orbitals(molecule)
    square = sum(float((t**2).sum()) for t in singles)
    return {
        # per spin channel the sum runs twice over a closed shell: T1 = |t1| / sqrt(N) of the spatial amplitudes
        "t1": float(np.sqrt(square / (2 * electrons))),
        "d1": max(float(np.linalg.norm(t, 2)) if t.size else 0.0 for t in singles),
        "max_t2": max(float(np.abs(t).max()) if t.size else 0.0 for t in doubles),
    }
