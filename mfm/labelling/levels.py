"""Levels of theory that mfm can label at: settings, identifier, and the record for a dataset card.

A level's :attr:`identifier` names everything that changes a number (functional, basis, dispersion, fitting
bases, grids, thresholds). Labels are stored under it, so changing a setting never mixes two recipes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mfm.fidelity import LevelOfTheory

__all__ = [
    "LEVELS",
    "CompositeLevel",
    "CoupledClusterLevel",
    "DensityFunctionalLevel",
    "ForceFieldLevel",
    "Level",
    "Request",
    "TightBindingLevel",
    "base_identifier",
    "level_from_record",
    "make_request",
    "read_level",
]


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
class CoupledClusterLevel:
    """CCSD or CCSD(T) in one basis, frozen core, with analytic forces where PySCF has them right."""

    basis: str = "cc-pvdz"
    triples: bool = True
    """Whether (T) is added."""
    density_fitting: bool = False
    """Whether integrals are fitted; the gradient of the installed PySCF is then refused."""
    forces: bool = True
    hf_tolerance: float = 1e-10
    """Convergence of HF, hartree."""
    cc_tolerance: float = 1e-8
    """Convergence of CCSD, hartree."""

    @property
    def identifier(self) -> str:
        """Name under which labels are stored; a hash of all settings ends it."""
        return _identifier("cc", f"{self._method.lower()}/{self.basis}", self)

    @property
    def _method(self) -> str:
        return "CCSD(T)" if self.triples else "CCSD"

    def level_of_theory(self, version: str) -> LevelOfTheory:
        """Record for a dataset card."""
        return LevelOfTheory(
            method=self._method,
            basis=self.basis,
            frozen_core=True,
            program="PySCF",
            version=version,
            settings=f"{'fitted' if self.density_fitting else 'exact'} integrals, HF {self.hf_tolerance:g},"
            f" CCSD {self.cc_tolerance:g} hartree, {self.identifier}",
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


@dataclasses.dataclass(frozen=True)
class ForceFieldLevel:
    """MMFF94, by RDKit: closed shells with a bond graph only."""

    variant: str = "MMFF94"
    """``MMFF94`` or ``MMFF94s``, which keeps amide nitrogens planar."""

    @property
    def identifier(self) -> str:
        """Name under which labels are stored; a hash of all settings ends it."""
        return _identifier("mmff", self.variant, self)

    def level_of_theory(self, version: str) -> LevelOfTheory:
        """Record for a dataset card."""
        return LevelOfTheory(
            method=self.variant,
            program="RDKit",
            version=version,
            settings=f"no cutoff, molecules of a cluster interact, {self.identifier}",
        )


Level = DensityFunctionalLevel | CompositeLevel | CoupledClusterLevel | TightBindingLevel | ForceFieldLevel

_KINDS: dict[str, type[Level]] = {
    "dft": DensityFunctionalLevel,
    "composite": CompositeLevel,
    "coupled_cluster": CoupledClusterLevel,
    "xtb": TightBindingLevel,
    "mmff": ForceFieldLevel,
}

_PREFIXES = {"cc": CoupledClusterLevel} | {name: kind for name, kind in _KINDS.items() if name != "coupled_cluster"}


def level_from_record(identifier: str, settings: str) -> Level:
    """Level from its identifier and its settings as JSON, as a labelling store keeps them.

    Raises
    ------
    ValueError
        If they do not belong together: the store is of a version whose levels had other settings.
    """
    kind = _PREFIXES.get(identifier.partition(":")[0])
    try:
        level = kind(**json.loads(settings)) if kind else None
    except TypeError:
        level = None
    if level is None or level.identifier != identifier:
        raise ValueError(
            f"level {identifier} of a labelling store must be one that this version of mfm computes, got settings"
            f" {settings}; continue it with the version that began it, or label into another store"
        )
    return level


LEVELS: dict[str, Level] = {
    "mmff": ForceFieldLevel(),
    "xtb": TightBindingLevel(),
    "dft_lite": DensityFunctionalLevel(basis="def2-svp", grid=3),
    "dft": DensityFunctionalLevel(),
    "ccsdt": CompositeLevel(),
}
"""Default level of each fidelity that the labelling commands know; any other name may be bound to any level."""

_EXTRAS = ("density", "polarizability")


class Request(NamedTuple):
    """A level, and labels beyond those it always gives."""

    level: Level
    extras: tuple[str, ...] = ()
    """Of ``density`` and ``polarizability``, which Kohn-Sham levels give when asked."""

    @property
    def key(self) -> str:
        """Name under which the answer is stored: extras change no other number, so the level's name starts it."""
        return "|".join([self.level.identifier, *sorted(self.extras)])

    @classmethod
    def from_key(cls, key: str, levels: Mapping[str, Level]) -> "Request":
        """Read :attr:`key`.

        Parameters
        ----------
        levels : mapping
            Level identifier → level.

        Raises
        ------
        ValueError
            If the level is unknown or cannot give what is asked.
        """
        identifier, *extras = key.split("|")
        if identifier not in levels:
            raise ValueError(
                f"queue must name levels out of {', '.join(sorted(levels)) or 'none'}, got {identifier};"
                " bind a fidelity to it, or label into another store"
            )
        return make_request(levels[identifier], extras)


def base_identifier(key: str) -> str:
    """Level identifier of a request's key.

    Examples
    --------
    >>> base_identifier("dft:x/y:0123|density")
    'dft:x/y:0123'
    """
    return key.split("|")[0]


def make_request(level: Level, extras: Iterable[str] = ()) -> Request:
    """Check what is asked of a level.

    Raises
    ------
    ValueError
        If the level cannot give an extra.
    """
    names = tuple(sorted(extras))
    known = _EXTRAS if isinstance(level, DensityFunctionalLevel) else ()
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f"extras of {level.identifier} must be among {', '.join(known) or 'none'}, got {', '.join(unknown)};"
            " ask a Kohn-Sham level for them"
        )
    return Request(level, names)


def read_level(name: str, settings: Mapping[str, Any] | None) -> Level:
    """Level of a fidelity: the default of its name, or one described by its `kind` and settings that differ.

    Raises
    ------
    ValueError
        If the name has no default and no kind is given, or a kind or setting is unknown.

    Examples
    --------
    >>> read_level("pbe", {"kind": "dft", "functional": "pbe-d3bj", "basis": "def2-svp"}).basis
    'def2-svp'
    """
    if not settings:
        if name not in LEVELS:
            raise ValueError(
                f"level must be one of {', '.join(LEVELS)}, or a plan must describe it by `kind` and settings,"
                f" got `{name}`"
            )
        return LEVELS[name]
    options = dict(settings)
    kind = options.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"`kind` of level `{name}` must be one of {', '.join(_KINDS)}, got {kind!r}")
    known = [field.name for field in dataclasses.fields(_KINDS[kind])]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"level `{name}` of kind `{kind}` has settings {', '.join(known)}; got {', '.join(unknown)}")
    return _KINDS[kind](**options)
