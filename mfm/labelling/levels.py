"""Levels of theory that mfm can label at: settings, identifier, and the record for a dataset card.

A level's :attr:`identifier` names everything that changes a number (functional, basis, dispersion, fitting
bases, grids, thresholds). Labels are stored under it, so changing a setting never mixes two recipes.
"""

import dataclasses
import hashlib
import json

from mfm.fidelity import LevelOfTheory

__all__ = ["LEVELS", "CompositeLevel", "DensityFunctionalLevel", "Level", "TightBindingLevel"]


def _identifier(kind: str, name: str, settings: object) -> str:
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)  # type: ignore[call-overload]
    return f"{kind}:{name}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclasses.dataclass(frozen=True)
class DensityFunctionalLevel:
    """Kohn-Sham DFT with density fitting and a two-grid SCF, by PySCF."""

    functional: str = "wb97m-d3bj"
    """PySCF name of the functional, dispersion included."""
    basis: str = "def2-tzvppd"
    fitting_basis: str = "def2-universal-jkfit"
    """Auxiliary basis of the Coulomb and exchange fit."""
    coarse_grid: int = 1
    """Grid level in which the SCF ladder runs, to `coarse_tolerance`."""
    grid: int = 4
    """Grid level of energy and forces; rotating a molecule changes forces by 0.3 meV/Å (3 at level 3)."""
    coarse_tolerance: float = 1e-6
    """Convergence of the coarse SCF, hartree."""
    tolerance: float = 1e-9
    """Convergence of the final SCF, hartree."""
    partition_grid: int = 3
    """Grid level of the MBIS charges."""
    unrestricted_below_gap: float = 9.0
    """Orbital gap, eV, below which a broken-symmetry solution is searched."""

    @property
    def identifier(self) -> str:
        """Name under which labels are stored; a hash of all settings ends it."""
        return _identifier("dft", f"{self.functional}/{self.basis}", self)

    def level_of_theory(self, version: str) -> LevelOfTheory:
        """Record for a dataset card."""
        names = {"wb97m-d3bj": ("wB97M", "D3(BJ)")}
        method, dispersion = names.get(self.functional, (self.functional, ""))
        return LevelOfTheory(
            method=method,
            basis=self.basis,
            dispersion=dispersion,
            program="PySCF",
            version=version,
            settings=f"DF-JK {self.fitting_basis}, grids {self.coarse_grid} then {self.grid},"
            f" SCF {self.tolerance:g} hartree, gradient with grid response, {self.identifier}",
            partition="MBIS",
        )


@dataclasses.dataclass(frozen=True)
class CompositeLevel:
    """CCSD(T) at the basis-set limit from HF and MP2 extrapolation plus a small-basis correction, by PySCF.

    E = HF_L + a (HF_L − HF_S) + MP2_L + b (MP2_L − MP2_S) + [CCSD(T) − MP2]_δ, correlation with frozen core.
    """

    small_basis: str = "cc-pvtz"
    large_basis: str = "cc-pvqz"
    correction_basis: str = "cc-pvdz"
    """Basis of the CCSD(T) − MP2 correction, exact integrals."""
    hf_factor: float = 0.30130
    """e4/(e3 − e4) with e_X = exp(−5.46 √X)."""
    mp2_factor: float = 0.71189
    """3^3.05/(4^3.05 − 3^3.05)."""
    hf_tolerance: float = 1e-10
    """Convergence of every HF, hartree."""
    cc_tolerance: float = 1e-8
    """Convergence of CCSD, hartree."""

    @property
    def identifier(self) -> str:
        """Name under which labels are stored; a hash of all settings ends it."""
        return _identifier(
            "composite", f"ccsd(t)/cbs({self.small_basis},{self.large_basis})+{self.correction_basis}", self
        )

    def level_of_theory(self, version: str) -> LevelOfTheory:
        """Record for a dataset card."""
        return LevelOfTheory(
            method="CCSD(T)",
            basis="CBS",
            composite=f"HF_Q + {self.hf_factor} (HF_Q - HF_T) + MP2_Q + {self.mp2_factor} (MP2_Q - MP2_T)"
            f" + [CCSD(T) - MP2]_D; T {self.small_basis}, Q {self.large_basis}, D {self.correction_basis}",
            frozen_core=True,
            program="PySCF",
            version=version,
            settings=f"density-fitted HF (jkfit) and MP2 (ri), exact integrals in the correction,"
            f" HF {self.hf_tolerance:g}, CCSD {self.cc_tolerance:g} hartree, {self.identifier}",
        )


@dataclasses.dataclass(frozen=True)
class TightBindingLevel:
    """GFN2-xTB, by tblite."""

    method: str = "GFN2-xTB"
    accuracy: float = 1.0

    @property
    def identifier(self) -> str:
        """Name under which labels are stored; a hash of all settings ends it."""
        return _identifier("xtb", self.method, self)

    def level_of_theory(self, version: str) -> LevelOfTheory:
        """Record for a dataset card."""
        return LevelOfTheory(
            method=self.method,
            program="tblite",
            version=version,
            settings=f"accuracy {self.accuracy:g}, {self.identifier}",
        )


Level = DensityFunctionalLevel | CompositeLevel | TightBindingLevel

LEVELS: dict[str, Level] = {
    "xtb": TightBindingLevel(),
    "dft": DensityFunctionalLevel(),
    "ccsdt": CompositeLevel(),
}
"""Default level of each fidelity that the labelling commands know; any other name may be bound to any level."""
