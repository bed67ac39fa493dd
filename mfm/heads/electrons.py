"""The electronic properties of every fidelity, from one charge state and parts that heads share."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mfm.density.basis import DensityBasis
from mfm.graph import AtomicGraph
from mfm.heads import HEADS, TaskConfig
from mfm.heads.base import PartSetting
from mfm.heads.joins import CHARGES, part_bases
from mfm.nn.charge_state import Charges, ChargeState
from mfm.nn.moments import polarisation, sum_over_atoms
from mfm.properties import PROPERTIES, parse_task

__all__ = ["ElectronicHeads"]


class ElectronicHeads(nn.Module):
    """Charges, multipole moments and what else depends on the electrons, at every fidelity.

    Each part of a fidelity is that of the fidelity it is anchored to plus what is learned for it. The charges of the
    first fidelity that is anchored to nothing are the model's charge state itself; every other fidelity adds an offset
    that keeps the total.

    Parameters
    ----------
    tasks : mapping of str to TaskConfig
        Tasks of the model; energies among them are left alone.
    setting : PartSetting
        What the backbone gives; the rest of it depends on the fidelity.
    density_bases : mapping of str to DensityBasis
        Fidelity to the basis of its densities.

    Raises
    ------
    ValueError
        If a density has no basis, or is anchored to one in another basis.
    """

    def __init__(
        self, tasks: Mapping[str, TaskConfig], setting: PartSetting, density_bases: Mapping[str, DensityBasis]
    ) -> None:
        super().__init__()
        self.bases = part_bases(tasks)
        _check_density_bases(self.bases, density_bases)
        kinds = {part: kind for head in HEADS.values() for part, kind in head.parts.items()}
        self.parts = nn.ModuleDict(
            {
                f"{p}_{f}": kinds[p](
                    setting._replace(density_basis=density_bases.get(f), is_correction=self.bases[f, p] is not None)
                )
                for f, p in self._ordered(tasks)
                if p != CHARGES
            }
        )
        charged = [fidelity for fidelity, part in self._ordered(tasks) if part == CHARGES]
        first = next((fidelity for fidelity in charged if self.bases[fidelity, CHARGES] is None), None)
        self.offsets = nn.ModuleDict(
            {f: ChargeState(setting.n_scalars, setting.cutoff, is_correction=True) for f in charged if f != first}
        )
        self.has_charges = bool(charged)

    def _ordered(self, tasks: Mapping[str, TaskConfig]) -> list[tuple[str, str]]:
        """Keys of :attr:`bases`, fidelities in the order of the configuration."""
        fidelities = list(dict.fromkeys(parse_task(name).fidelity for name in tasks))
        return sorted(self.bases, key=lambda key: (fidelities.index(key[0]), key[1]))

    def forward(
        self, features: tuple[Tensor, Tensor], graph: AtomicGraph, state: Charges | None, tasks: Sequence[str]
    ) -> dict[str, Tensor]:
        """Values of electronic tasks; NaN where a periodic structure cannot have them.

        Parameters
        ----------
        features : (scalars, equivariants)
            Of the backbone.
        state : Charges, optional
            Of the model's charge state; needed if a task reads charges.
        """
        charges: dict[str, Charges] = {}
        parts: dict[tuple[str, str], Tensor] = {}
        outputs = {}
        for name in tasks:
            prop, fidelity = parse_task(name)
            head = HEADS[prop]
            moments = {part: self._part(fidelity, part, features, graph, parts) for part in head.parts}
            if head.reads_charges:
                assert state is not None
                moments[CHARGES] = self._charges(fidelity, features[0], graph, state, charges).charges[:, 0]
            outputs[name] = head.evaluate(moments, graph)
        is_periodic = graph.pbc.any(dim=1)
        for name, value in outputs.items():
            row = PROPERTIES[parse_task(name).property]
            if row.isolated:
                hidden = is_periodic if row.per == "structure" else is_periodic.index_select(0, graph.batch)
                outputs[name] = value.masked_fill(hidden.view(-1, *[1] * (value.dim() - 1)), float("nan"))
        return outputs

    def has_dipole(self, fidelity: str) -> bool:
        """Whether a fidelity has charges and atomic dipoles."""
        return {(fidelity, CHARGES), (fidelity, "atomic_dipoles")} <= self.bases.keys()

    def polarisation(
        self, features: tuple[Tensor, Tensor], graph: AtomicGraph, state: Charges, fidelity: str
    ) -> Tensor:
        """Dipole moment about the origin, (n_structures, 3), e Å, right in crystals too up to a constant.

        `state` must hold the dipoles of its transfers, see :func:`mfm.nn.moments.polarisation`.
        """
        dipoles = self._part(fidelity, "atomic_dipoles", features, graph, {})
        charges = self._charges(fidelity, features[0], graph, state, {})
        return polarisation(charges, graph) + sum_over_atoms(dipoles, graph)

    def _charges(
        self, fidelity: str, scalars: Tensor, graph: AtomicGraph, state: Charges, known: dict[str, Charges]
    ) -> Charges:
        if fidelity not in known:
            base = self.bases[fidelity, CHARGES]
            found = state if base is None else self._charges(base, scalars, graph, state, known)
            if fidelity in self.offsets:
                found = found.corrected(self.offsets[fidelity](scalars, graph, state.transfer_dipoles is not None))
            known[fidelity] = found
        return known[fidelity]

    def _part(
        self,
        fidelity: str,
        part: str,
        features: tuple[Tensor, Tensor],
        graph: AtomicGraph,
        known: dict[tuple[str, str], Tensor],
    ) -> Tensor:
        if (fidelity, part) not in known:
            value: Tensor = self.parts[f"{part}_{fidelity}"](*features, graph)
            base = self.bases[fidelity, part]
            known[fidelity, part] = value if base is None else value + self._part(base, part, features, graph, known)
        return known[fidelity, part]


def _check_density_bases(bases: Mapping[tuple[str, str], str | None], known: Mapping[str, DensityBasis]) -> None:
    for (fidelity, part), base in bases.items():
        if not part.startswith("density"):
            continue
        if fidelity not in known:
            raise ValueError(
                f"task `density_{fidelity}` needs a basis, which comes with labels: name their file as `data.densities`"
            )
        if base is not None and known[base] != known[fidelity]:
            raise ValueError(
                f"task `density_{fidelity}` must have the basis and the free atoms of the density it is anchored to,"
                f" got `{known[fidelity].name}` beside `{known[base].name}` of `{base}`; let it be independent"
            )
