"""The composite CCSD(T) energy: its constants, its parts, its diagnostics."""

from typing import Any

import numpy as np
import pytest
from pyscf import cc, fci, gto, mp, scf

from mfm.graph import Structure
from mfm.labelling import coupled_cluster
from mfm.labelling.coupled_cluster import CompositeParts, composite_energy, label_composite
from mfm.labelling.levels import CompositeLevel
from mfm.units import BOHR, HARTREE

SMALL = CompositeLevel(small_basis="cc-pvdz", large_basis="cc-pvtz")
WATER = Structure(np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.1], [0.8, 0.1, -0.5], [-0.75, 0.05, -0.45]]))


def test_extrapolation_factors_follow_from_the_exponents() -> None:
    level = CompositeLevel()
    three, four = np.exp(-5.46 * np.sqrt(3)), np.exp(-5.46 * np.sqrt(4))
    assert level.hf_factor == pytest.approx(four / (three - four), abs=5e-6)
    assert level.mp2_factor == pytest.approx(3**3.05 / (4**3.05 - 3**3.05), abs=5e-6)


def test_energies_on_the_assumed_curves_extrapolate_to_the_limit() -> None:
    """HF on E∞ + A exp(−α √X), MP2 on E∞ + B X^−β, plus a correction."""
    parts = CompositeParts(
        hf_small=-76.0 + 3.0 * np.exp(-5.46 * np.sqrt(3)),
        hf_large=-76.0 + 3.0 * np.exp(-5.46 * np.sqrt(4)),
        mp2_small=-0.3 + 1.2 * 3**-3.05,
        mp2_large=-0.3 + 1.2 * 4**-3.05,
        mp2_correction=-0.20,
        cc_correction=-0.21,
    )
    assert composite_energy(parts, CompositeLevel()) == pytest.approx(-76.0 - 0.3 - 0.01, abs=1e-6)


def _exact(basis: str, structure: Structure) -> Any:
    """Hartree-Fock with exact integrals."""
    atoms = [(int(z), tuple(row)) for z, row in zip(structure.atomic_numbers, structure.positions / BOHR, strict=True)]
    spin = (structure.multiplicity or 1) - 1
    molecule = gto.M(atom=atoms, unit="Bohr", basis=basis, spin=spin, charge=structure.charge, verbose=0)
    return (scf.UHF if spin else scf.RHF)(molecule).run(conv_tol=1e-10)


def test_hydrogen_molecule_against_full_ci_and_exact_integrals() -> None:
    """Two electrons: CCSD is full CI, there is no core, and density fitting costs at most 0.1 meV."""
    pair = Structure(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 0.8]]))
    small = _exact("cc-pvdz", pair)
    large = _exact("cc-pvtz", pair)
    full = float(fci.FCI(small).kernel()[0]) - small.e_tot
    mp2 = [float(mp.MP2(solver).kernel()[0]) for solver in (small, large)]
    expected = (
        large.e_tot + 0.30130 * (large.e_tot - small.e_tot) + mp2[1] + 0.71189 * (mp2[1] - mp2[0]) + full - mp2[0]
    )
    assert float(label_composite(pair, SMALL).values["energy"]) == pytest.approx(expected * HARTREE, abs=1e-3)


def test_water_against_pyscf_called_by_hand() -> None:
    """Frozen core, exact integrals everywhere: only the density fitting of HF and MP2 differs."""
    small = _exact("cc-pvdz", WATER)
    large = _exact("cc-pvtz", WATER)
    mp2 = [float(mp.MP2(solver, frozen=1).kernel()[0]) for solver in (small, large)]
    coupled = cc.CCSD(small, frozen=1).run()
    correction = coupled.e_corr + coupled.ccsd_t() - mp2[0]
    expected = large.e_tot + 0.30130 * (large.e_tot - small.e_tot) + mp2[1] + 0.71189 * (mp2[1] - mp2[0]) + correction
    labels = label_composite(WATER, SMALL)
    assert float(labels.values["energy"]) == pytest.approx(expected * HARTREE, abs=5e-3)
    assert labels.flags["t1"] == pytest.approx(coupled.get_t1_diagnostic(), rel=1e-3)
    assert labels.flags["d1"] == pytest.approx(coupled.get_d1_diagnostic(), rel=1e-3)
    assert labels.flags["gap"] > 10.0
    assert 0.0 < labels.flags["triples_share"] < 0.05


def test_open_shell_composite() -> None:
    """Triplet oxygen: UHF, fitted UMP2 and UCCSD(T) against exact integrals."""
    atom = Structure(np.array([8]), np.zeros((1, 3)), multiplicity=3)
    small = _exact("cc-pvdz", atom)
    large = _exact("cc-pvtz", atom)
    mp2 = [float(mp.MP2(solver, frozen=1).kernel()[0]) for solver in (small, large)]
    coupled = cc.CCSD(small, frozen=1).run()
    correction = coupled.e_corr + coupled.ccsd_t() - mp2[0]
    expected = large.e_tot + 0.30130 * (large.e_tot - small.e_tot) + mp2[1] + 0.71189 * (mp2[1] - mp2[0]) + correction
    assert float(label_composite(atom, SMALL).values["energy"]) == pytest.approx(expected * HARTREE, abs=5e-3)


def test_one_electron_has_no_correlation_energy() -> None:
    atom = Structure(np.array([1]), np.zeros((1, 3)), multiplicity=2)
    labels = label_composite(atom, CompositeLevel())
    # the exact energy is -1/2 hartree; the extrapolated HF comes within 0.4 meV
    assert float(labels.values["energy"]) == pytest.approx(-0.5 * HARTREE, abs=5e-4)
    assert labels.flags["t1"] == 0.0


def test_unconverged_hartree_fock_and_ccsd_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupled_cluster.cc.ccsd.CCSDBase, "kernel", lambda self, *a, **k: None)
    with pytest.raises(ValueError, match=r"CCSD in cc-pvdz must converge within 100 cycles"):
        label_composite(WATER, SMALL)
    original = coupled_cluster._hartree_fock

    def hurried(*arguments: Any) -> Any:
        solver = original(*arguments)
        solver.max_cycle = 1
        return solver

    monkeypatch.setattr(coupled_cluster, "_hartree_fock", hurried)
    with pytest.raises(ValueError, match=r"Hartree-Fock in cc-pvdz must converge within 1 cycles"):
        label_composite(WATER, SMALL)
