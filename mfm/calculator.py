"""ASE calculator for mfm models: several levels of theory in one forward pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import ase
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

if TYPE_CHECKING:
    import mfm.graph
    import mfm.model

__all__ = ["MFMCalculator"]

_STATE_IN_INFO = ("charge", "spin", "multiplicity")
_MECHANICAL = ["energy", "free_energy", "forces", "stress"]
_ON_REQUEST = ("born_effective_charges", "charge_residual", "density")
"""What is not computed with every energy: it costs backward passes, has a method of its own, or is of no use outside of
training."""


class MFMCalculator(Calculator):
    """Energy, forces and stress of a model at one of its fidelities, and the energies at all of them.

    Everything else (cutoff, units, elements, levels of theory) comes from the checkpoint. The total charge and the
    multiplicity 2S + 1 of a structure come from ``atoms.info["charge"]`` and ``atoms.info["spin"]``; when they
    change, the results are computed anew.

    After a calculation ``results`` holds ``energy``, ``free_energy`` (the same), ``forces`` and, with a cell that is
    periodic in all three directions, ``stress`` (Voigt order, ASE's sign), all at the chosen fidelity, and
    ``energy_<fidelity>`` for every fidelity of the model. A model with heads for them adds, at the chosen fidelity,
    ``charges`` (e), ``atomic_dipoles`` (e Å) and, without periodicity, ``dipole`` (e Å), ``quadrupole`` (e Å²,
    traceless), both about the nuclear charge centre, and ``polarizability`` (e² Å²/eV). One with a long-range part adds
    ``energy_long_range``, ``energy_short_range`` (eV), and charges and dipole if it has no heads for them; in a field
    ``energy_field`` (eV) too. These parts add up to ``energy``.

    Parameters
    ----------
    model : path, str or MFMModel
        A checkpoint; ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/RUN`` of the tracked runs in
        ``mlruns/`` or where ``MFM_TRACKING_URI`` says; or a model in memory (which is copied).
    fidelity : str, optional
        Level of theory to run at. May be left out only if the model has just one.
    device : str, optional
        Such as ``cpu``, ``cuda``, ``cuda:1``. By default a CUDA device if there is one.
    dtype : {"float32", "float64"}, optional
        Precision of the network, by default the checkpoint's. Total energies are float64 in any case. Use float64
        for vibrations and tight optimisations.
    skin : float, Å
        Neighbours are searched anew when an atom has moved more than half of it. It does not change the results.
    electric_field : three float, V/Å, optional
        A uniform field on a model with a long-range part: energies are then electric enthalpies E − P·F, and forces and
        stress their derivatives. P is the dipole that is reported, about the origin.

    Raises
    ------
    ValueError
        If the fidelity is unknown, the model has several and none is named, or a field is given to a model without
        charges.
    """

    implemented_properties: list[str] = _MECHANICAL

    def __init__(
        self,
        model: Union[str, Path, "mfm.model.MFMModel"],
        fidelity: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        skin: float = 0.5,
        electric_field: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        # torch and torch_geometric take seconds to import: a script pays when it makes a calculator, not before
        import torch

        from mfm.device import choose_device
        from mfm.potential import Potential
        from mfm.tracking import open_model

        if dtype not in (None, "float32", "float64"):
            raise ValueError(f"`dtype` must be `float32` or `float64`, got `{dtype}`")
        precision = None if dtype is None else getattr(torch, dtype)
        loaded = open_model(model, dtype=precision) if isinstance(model, str | Path) else model
        self._potential = Potential(loaded, choose_device(device or "auto"), precision, skin)
        self._fidelity = self._choose(fidelity)
        self._field = None if electric_field is None else [float(component) for component in electric_field]
        if self._field is not None and (len(self._field) != 3 or not np.isfinite(self._field).all()):
            raise ValueError(f"`electric_field` must be three finite components in V/Å, got {self._field}")
        if self._field is not None and not self._potential.has_long_range:
            raise ValueError(
                "`electric_field` acts on charges, which this model has not; train one with `model.long_range`"
            )

        self.implemented_properties = self._available()

    def _available(self) -> list[str]:
        """What ASE may ask for at the chosen fidelity."""
        found = [name for name in self._potential.properties(self.fidelity) if name not in self._left_out()]
        if "energy_long_range" in found:
            found.append("energy_short_range")
        return [*(_MECHANICAL if self._potential.has_energy(self.fidelity) else ()), *found]

    def _left_out(self) -> tuple[str, ...]:
        """What of the model's properties is not computed with every energy."""
        return _ON_REQUEST if self._field is not None else (*_ON_REQUEST, "energy_field")

    def _choose(self, fidelity: str | None) -> str:
        from mfm.potential import check_fidelity

        known = self.fidelities()
        if fidelity is not None:
            return check_fidelity(fidelity, known)
        if len(known) > 1:
            raise ValueError(
                f"the model has several fidelities, name one: `fidelity` must be one of {', '.join(known)}"
            )
        return known[0]

    @property
    def fidelity(self) -> str:
        """Level of theory of ``energy``, ``forces`` and ``stress``. Set it to switch without loading again."""
        return self._fidelity

    @fidelity.setter
    def fidelity(self, name: str) -> None:
        self._fidelity = self._choose(name)
        self.implemented_properties = self._available()
        self.reset()

    def fidelities(self) -> list[str]:
        """Levels of theory that the model has."""
        return self._potential.fidelities

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, charge and spin in ``atoms.info`` included."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        if self.atoms is not None:
            changes += [key for key in _STATE_IN_INFO if self.atoms.info.get(key) != atoms.info.get(key)]
        return changes

    def get_property(self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True) -> Any:
        """One of ``implemented_properties``; called by ASE.

        Raises
        ------
        PropertyNotImplementedError
            If the model does not predict it at the chosen fidelity, or the structure cannot have it.
        """
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(
                f"`{name}` is not among what this model predicts at `{self.fidelity}`:"
                f" {', '.join(self.implemented_properties)}"
            )
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill ``results``; called by ASE.

        Raises
        ------
        ValueError
            If the structure is one the model cannot evaluate.
        PropertyNotImplementedError
            If the stress of a structure is asked for that is not periodic in all three directions, or the dipole,
            quadrupole or polarizability of one that is periodic in any.
        """
        from mfm.properties import PROPERTIES

        super().calculate(atoms, properties, system_changes)
        structure = _structure(self._last(None))
        periodic = bool(structure.pbc.all())
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError(
                f"stress needs a structure that is periodic in all three directions, got `pbc`"
                f" {structure.pbc.tolist()} for {structure.formula}"
            )
        # energies alone need no backward pass; forces and stress share most of theirs
        wanted = (self.fidelity,) if {"forces", "stress"} & set(properties) else ()
        hidden = [] if not structure.pbc.any() else [name for name, row in PROPERTIES.items() if row.isolated]
        refused = [name for name in hidden if name in properties]
        if refused:
            raise PropertyNotImplementedError(
                f"the {refused[0]} of a periodic structure depends on the choice of its cell, got `pbc`"
                f" {structure.pbc.tolist()} for {structure.formula}; see `born_effective_charges`"
            )
        available = self._potential.properties(self.fidelity)
        extras = [name for name in available if name not in (*self._left_out(), *hidden)]
        prediction = self._potential.evaluate(
            structure,
            forces=wanted,
            stress=wanted if periodic else (),
            quantities=(extras, self.fidelity),
            electric_field=self._field,
        )
        self.results.update({f"energy_{name}": value for name, value in prediction.energies.items()})
        if self.fidelity in prediction.energies:
            energy = prediction.energies[self.fidelity]
            self.results.update(energy=energy, free_energy=energy)
        for name, value in prediction.quantities.items():
            is_atomic = name in PROPERTIES and PROPERTIES[name].per == "atom"
            self.results[name] = value if is_atomic else value[0] if value.ndim > 1 else float(value[0])
        if "energy_long_range" in self.results:
            others = self.results["energy_long_range"] + self.results.get("energy_field", 0.0)
            self.results["energy_short_range"] = self.results["energy"] - others
        for name in wanted:
            self.results["forces"] = prediction.forces[name]
            if periodic:
                self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stresses[name])

    def born_effective_charges(self, atoms: ase.Atoms | None = None) -> np.ndarray:
        """Slopes of the polarisation with respect to the positions, from three backward passes.

        Also called atomic polar tensors. In a molecule they are the derivatives of its dipole.

        Parameters
        ----------
        atoms : ase.Atoms, optional
            By default the structure of the last calculation.

        Returns
        -------
        (n_atoms, 3, 3), e
            Rows are components of the polarisation, columns of the displacement.

        Raises
        ------
        ValueError
            If the model has neither dipole nor charges, or there is no structure yet.
        """
        if "born_effective_charges" not in self._potential.properties(self.fidelity):
            raise ValueError(
                "Born effective charges need a dipole or charges, which this model has not at"
                f" `{self.fidelity}`; train a dipole task, or `model.long_range`"
            )
        asked = (["born_effective_charges"], self.fidelity)
        found = self._potential.evaluate(_structure(self._last(atoms)), quantities=asked).quantities
        return found["born_effective_charges"]

    def density(self, points: np.ndarray, atoms: ase.Atoms | None = None, field: str = "density") -> np.ndarray:
        """Electron density of a molecule, or what follows from it, at points.

        Parameters
        ----------
        points : (n_points, 3), Å
        atoms : ase.Atoms, optional
            By default the structure of the last calculation.
        field : {"density", "deformation", "potential"}
            Electrons (e/Å³), electrons less those of superposed free atoms (e/Å³), electrostatic potential (V).

        Returns
        -------
        (n_points,)

        Raises
        ------
        ValueError
            If the model has no density at the chosen fidelity, the structure is periodic, or there is none yet.
        """
        from mfm.density.fields import field_at

        return field_at(points, self._potential.density(_structure(self._last(atoms)), self.fidelity), field)

    def write_cube(
        self,
        path: str | Path,
        atoms: ase.Atoms | None = None,
        field: str = "density",
        step: float = 0.15,
        margin: float = 3.0,
    ) -> None:
        """Write density, deformation density or potential as a cube file, in atomic units.

        Parameters
        ----------
        atoms, field
            See :meth:`density`.
        step : float, Å
            Distance of neighbouring points.
        margin : float, Å
            Least distance of a nucleus from the faces of the box.

        Raises
        ------
        ValueError
            As :meth:`density`.
        """
        from mfm.density.fields import write_field

        structure = _structure(self._last(atoms))
        write_field(path, structure, self._potential.density(structure, self.fidelity), field, step, margin)

    def gap(self, high: str, low: str, atoms: ase.Atoms | None = None) -> float:
        """Energy at one fidelity minus the energy at another, from one forward pass.

        Two levels of theory have different zeros of energy: only differences of gaps, between structures of the same
        composition, mean something by themselves.

        Parameters
        ----------
        high, low : str
            Fidelities.
        atoms : ase.Atoms, optional
            By default the structure of the last calculation.

        Returns
        -------
        float, eV

        Raises
        ------
        ValueError
            If a fidelity is unknown, or there is no structure yet.
        """
        high, low = (self._with_energy(name) for name in (high, low))
        chosen = self._last(atoms)
        self._potential.check(_structure(chosen), (high, low))
        if self.check_state(chosen):
            self.reset()  # or forces of the structure before would pass for those of this one
        if not {f"energy_{high}", f"energy_{low}"} <= self.results.keys():
            self.calculate(chosen, ["energy"])
        return float(self.results[f"energy_{high}"] - self.results[f"energy_{low}"])

    def forces_gap(self, high: str, low: str, atoms: ase.Atoms | None = None) -> np.ndarray:
        """Forces at one fidelity minus the forces at another.

        Parameters
        ----------
        high, low : str
            Fidelities.
        atoms : ase.Atoms, optional
            By default the structure of the last calculation.

        Returns
        -------
        (n_atoms, 3), eV/Å

        Raises
        ------
        ValueError
            If a fidelity is unknown, or there is no structure yet.
        """
        high, low = (self._with_energy(name) for name in (high, low))
        forces = self._potential.evaluate(_structure(self._last(atoms)), forces=(high, low)).forces
        return forces[high] - forces[low]

    def _with_energy(self, fidelity: str) -> str:
        if not self._potential.has_energy(self._choose(fidelity)):
            raise ValueError(f"a gap needs energies, which this model has not at `{fidelity}`")
        return fidelity

    def _last(self, atoms: ase.Atoms | None) -> ase.Atoms:
        chosen: ase.Atoms | None = self.atoms if atoms is None else atoms
        if chosen is None:
            raise ValueError("there is no structure yet: pass `atoms`, or compute an energy first")
        return chosen


def _structure(atoms: ase.Atoms) -> "mfm.graph.Structure":
    from mfm.graph import Structure

    return Structure.from_ase(atoms)
