"""A model made ready for molecular dynamics: one structure in, every fidelity out, neighbours reused."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfm.density.evaluator import MolecularDensity
from mfm.graph import Structure, build_graph, neighbour_list
from mfm.longrange.lattice import SLAB_MARGIN
from mfm.model import MFMModel, build_model
from mfm.properties import parse_task

__all__ = ["Potential", "Prediction", "SkinNeighbours", "check_fidelity"]

_BREATHING = 0.1
"""Relative change of a cell vector's length up to which a mesh is kept."""
_ROOM, _WASTE = 1.1, 1.3
"""Length of the cell that a slab is summed in, over the least one: when it is chosen, and above which it is renewed."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says about one structure."""

    energies: Mapping[str, float]
    """Total energy of every fidelity that has energies, eV, float64."""
    forces: Mapping[str, np.ndarray]
    """(n_atoms, 3), eV/Å, of the fidelities asked for."""
    stresses: Mapping[str, np.ndarray]
    """(3, 3), eV/Å^3, of the fidelities asked for, if the structure is periodic in all three directions."""
    quantities: Mapping[str, np.ndarray]
    """What else was asked for, of what :meth:`Potential.properties` lists, at the fidelity asked for."""


def check_fidelity(name: str, known: Sequence[str]) -> str:
    """The name, if the model has that fidelity.

    Raises
    ------
    ValueError
        If it has not; the message lists those it has.
    """
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise ValueError(f"`fidelity` must be one of {', '.join(known)}, got `{name}`{hint}")


class _Candidates(NamedTuple):
    """Pairs within the cutoff and the skin, and the structure that they were searched for."""

    structure: Structure
    edge_index: Tensor  # (2, n_pairs)
    unit_shifts: Tensor  # (n_pairs, 3)
    translations: Tensor  # (n_pairs, 3), Å


class SkinNeighbours:
    """Neighbour list that is searched anew only when an atom has moved more than half the skin.

    The list returned is exact at every step: pairs in the skin are filtered out, on the device where the model is, so
    that no list has to be copied there between two searches. It is also renewed when the cell, the periodicity or the
    number of atoms change.

    Parameters
    ----------
    cutoff : float, Å
    skin : float, Å
        0 searches at every step.
    device : torch.device, optional
        Where lists are wanted, by default the CPU.

    Raises
    ------
    ValueError
        If `skin` is negative.
    """

    def __init__(self, cutoff: float, skin: float = 0.5, device: torch.device | None = None) -> None:
        if skin < 0:
            raise ValueError(f"`skin` must be 0 Å or more, got {skin}; 0 searches the neighbours at every step")
        self.cutoff = cutoff
        self.skin = skin
        self.device = torch.device("cpu") if device is None else device
        self._candidates: _Candidates | None = None

    def __call__(self, structure: Structure) -> tuple[Tensor, Tensor]:
        """Edges and lattice translations, as :func:`mfm.graph.neighbour_list` returns them.

        Returns
        -------
        edge_index : (2, n_edges), int64
            Senders, receivers; sorted by receiver.
        unit_shifts : (n_edges, 3), int64
        """
        found = self._candidates
        if found is None or not self._serve(found, structure):
            found = self._candidates = self._search(structure)
        # in float64, as the search does, whatever the network is
        positions = torch.as_tensor(structure.positions).to(self.device)
        senders, receivers = found.edge_index
        vectors = positions.index_select(0, senders) - positions.index_select(0, receivers) + found.translations
        near = (vectors.square().sum(dim=1) < self.cutoff**2).nonzero().squeeze(1)
        return found.edge_index.index_select(1, near), found.unit_shifts.index_select(0, near)

    def _serve(self, found: _Candidates, structure: Structure) -> bool:
        """Whether all pairs within the cutoff are still among the candidates."""
        old = found.structure
        if len(old) != len(structure) or (old.pbc != structure.pbc).any() or (old.cell != structure.cell).any():
            return False
        moved = np.square(structure.positions - old.positions).sum(axis=1).max()
        return bool(moved < (0.5 * self.skin) ** 2)

    def _search(self, structure: Structure) -> _Candidates:
        edge_index, shifts = neighbour_list(structure, self.cutoff + self.skin)
        parts = (edge_index, shifts, shifts @ structure.cell)
        # of its own: arrays of a structure may be views of atoms that move on
        kept = dataclasses.replace(structure, positions=structure.positions.copy(), cell=structure.cell.copy())
        return _Candidates(kept, *(torch.as_tensor(part).to(self.device) for part in parts))


class Potential:
    """Energies, forces and stress of single structures.

    Parameters
    ----------
    model : MFMModel
        Copied, so that later training does not change the potential.
    device : torch.device
    dtype : torch.dtype, optional
        Precision of the network; energies are float64 in any case. None keeps the model's.
    skin : float, Å
        See :class:`SkinNeighbours`.
    """

    def __init__(
        self, model: MFMModel, device: torch.device, dtype: torch.dtype | None = None, skin: float = 0.5
    ) -> None:
        # made anew rather than converted: tables of constants of a float32 model are rounded, whatever it becomes later
        self.model = build_model(model.config, model.domain, seed=0, dtype=dtype or model.dtype)
        self.model.load_state_dict(model.state_dict())
        self.model.to(device=device).eval().requires_grad_(False)
        self.device = device
        self.neighbours = SkinNeighbours(model.cutoff, skin, device)
        self._cell = np.zeros((3, 3))
        self._slab_length = 0.0
        elements = sorted(set[int]().union(*(model.domain.elements_of(name) for name in model.fidelities)))
        self._widest = 0.0 if self.model.long_range is None else self.model.long_range.largest_width(elements)

    @property
    def fidelities(self) -> list[str]:
        """Fidelities of the model."""
        return list(self.model.fidelities)

    def properties(self, fidelity: str) -> list[str]:
        """What can be had at a fidelity beside energy, forces and stress."""
        return self.model.properties(fidelity)

    def check(self, structure: Structure, fidelities: Collection[str] = ()) -> None:
        """Refuse a structure outside of what the model, or one of its fidelities, was trained on.

        Raises
        ------
        ValueError
            See :meth:`mfm.domain.Domain.check`.
        """
        self.model.domain.check(structure, fidelities)

    def has_energy(self, fidelity: str) -> bool:
        """Whether a fidelity has energies, and so forces and stress."""
        return f"energy_{fidelity}" in self.model.energies

    @property
    def has_long_range(self) -> bool:
        """Whether the model has charges and a long-range energy."""
        return self.model.long_range is not None

    def evaluate(
        self,
        structure: Structure,
        forces: Sequence[str] = (),
        stress: Sequence[str] = (),
        quantities: tuple[Sequence[str], str] = ((), ""),
        electric_field: Sequence[float] | None = None,
    ) -> Prediction:
        """Energies of all fidelities from one forward pass; derivatives of those named, and what else is asked for.

        A fidelity that is not named and has not seen the structure's elements or charge is left out.

        Parameters
        ----------
        forces, stress : sequence of str
            Fidelities whose forces and stress to compute. Each costs a backward pass.
        quantities : (names, fidelity)
            What else to return, such as ``charges``, and at which fidelity.
        electric_field : three float, V/Å, optional
            A uniform field; energies are then electric enthalpies.

        Raises
        ------
        ValueError
            If the structure holds an element, charge or multiplicity that the training data did not, or a charge that
            no data of a fidelity named here did, or a stress is asked for without a cell that repeats in all three
            directions.
        """
        self.check(structure, {*forces, *stress, quantities[1]} - {""})
        if stress and not structure.pbc.all():
            raise ValueError(
                f"stress needs a structure that is periodic in all three directions, got `pbc` {structure.pbc.tolist()}"
                f" for {structure.formula}"
            )
        graph = build_graph(
            structure, self.model.cutoff, dtype=self.model.dtype, neighbours=self.neighbours(structure)
        ).to(self.device)
        if electric_field is not None:
            graph.electric_field = torch.tensor([list(electric_field)], dtype=torch.float64, device=self.device)
        if self.has_long_range and structure.pbc.any():
            graph.reference_cell = torch.as_tensor(self._reference_cell(structure))[None].to(self.device)
            if structure.pbc.sum() == 2:
                length = self._length_of_slab(structure)
                graph.slab_length = torch.tensor([length], dtype=torch.float64, device=self.device)
        derivatives = [f"forces_{fidelity}" for fidelity in forces] + [f"stress_{fidelity}" for fidelity in stress]
        extras = [f"{name}_{quantities[1]}" for name in quantities[0]]
        with torch.set_grad_enabled(bool(derivatives) or "born_effective_charges" in quantities[0]):
            outputs = self.model.predict(graph, tasks=self.model.energies, derivatives=derivatives, quantities=extras)
        values = {name: value.detach().cpu().double().numpy() for name, value in outputs.items()}
        return Prediction(
            energies={
                fidelity: float(values[f"energy_{fidelity}"][0])
                for fidelity in (parse_task(name).fidelity for name in self.model.energies)
                if self.model.domain.knows(structure, fidelity)
            },
            forces={fidelity: values[f"forces_{fidelity}"] for fidelity in forces},
            stresses={fidelity: values[f"stress_{fidelity}"][0] for fidelity in stress},
            quantities={name: values[f"{name}_{quantities[1]}"] for name in quantities[0]},
        )

    def density(self, structure: Structure, fidelity: str) -> MolecularDensity:
        """Electron density at a fidelity, in float64 whatever the network is.

        Raises
        ------
        ValueError
            If the model has no density at the fidelity, or the structure is periodic or otherwise one that the model
            cannot evaluate.
        """
        if "density" not in self.properties(fidelity):
            having = ", ".join(name for name in self.fidelities if "density" in self.properties(name))
            known = ", ".join([*(["energy"] if self.has_energy(fidelity) else []), *self.properties(fidelity)])
            raise ValueError(
                f"a density needs a model that has one at `{fidelity}`, got one with {known}"
                f" (densities at {having or 'no fidelity'}); train a task `density_{fidelity}`"
            )
        self.check(structure, [fidelity])
        graph = build_graph(structure, self.model.cutoff, dtype=self.model.dtype).to(self.device)
        with torch.no_grad():
            rows = self.model.predict(graph, [f"density_{fidelity}"])[f"density_{fidelity}"]
        return MolecularDensity(
            torch.as_tensor(structure.positions, device=self.device),
            graph.atomic_numbers,
            rows,
            self.model.domain.density_bases[fidelity],
        )

    def _reference_cell(self, structure: Structure) -> np.ndarray:
        """Cell whose mesh is used: that of an earlier call as long as the cell just breathes.

        Energies of a run at constant pressure then do not jump where the mesh would change.
        """
        new, old = (np.linalg.norm(cell, axis=1) for cell in (structure.cell, self._cell))
        if not np.allclose(new, old, rtol=_BREATHING, atol=0.0):
            self._cell = structure.cell
        return self._cell

    def _length_of_slab(self, structure: Structure) -> float:
        """Length of the cell that a slab is summed in, Å: that of an earlier call as long as the slab fits well.

        It sets the mesh along the normal: energies then do not jump as the uppermost atom moves.
        """
        first, second = structure.cell[structure.pbc]
        normal = np.cross(first, second)
        area = np.linalg.norm(normal)
        if area == 0.0:
            return 0.0  # no cell to sum in, which the model refuses
        least = 2.0 * (np.ptp(structure.positions @ normal) / area + SLAB_MARGIN * self._widest)
        if not least <= self._slab_length <= _WASTE * least:
            self._slab_length = _ROOM * least
        return self._slab_length
