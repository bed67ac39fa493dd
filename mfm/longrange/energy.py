"""Long-range energy of a batch in which molecules, slabs and crystals may be mixed."""

import torch
from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.longrange.base import Particles
from mfm.longrange.direct import direct_sum
from mfm.longrange.exact import exact_sum
from mfm.longrange.kernels import Kernel, background, self_potential
from mfm.longrange.lattice import Lattice, check_periodicity, make_lattice

__all__ = ["long_range_energy"]


def long_range_energy(
    kernel: Kernel, amplitudes: Tensor, widths: Tensor, kinds: Tensor, graph: AtomicGraph, k_cutoff: float
) -> Tensor:
    """½ Σ_{i≠j} a_i a_j v_ij over all periodic images, by the way that fits each structure's `pbc`.

    Structures without periodicity are summed pair by pair, whatever their cell; those periodic in two directions as
    slabs; the others in reciprocal space, with a uniform background where they carry a net charge. Everything is
    computed in float64.

    Parameters
    ----------
    amplitudes : (n_atoms, n_channels)
        Charges in e, or √C6 in √(eV Å⁶). Channels do not interact; their energies are added.
    widths : (n_atoms,), Å
        Gaussian widths σ; with dispersion equal for all atoms.
    kinds : (n_atoms,)
        Integers; atoms of one kind have one width.
    graph : AtomicGraph
    k_cutoff : float, Å⁻¹
        End of the sums in reciprocal space.

    Returns
    -------
    (n_structures,), eV, float64

    Raises
    ------
    ValueError
        If a structure is periodic in one direction, or in some direction without a cell vector, or if dispersion is
        wanted for a slab.
    """
    check_periodicity(graph.pbc, graph.cell)
    particles = Particles(amplitudes.double(), widths.double(), graph.positions.double(), graph.batch, kinds)
    is_periodic = graph.pbc.any(dim=1)
    if not bool(is_periodic.any()):
        return direct_sum(kernel, particles, graph.n_structures)
    cell = graph.cell.double()
    if bool(is_periodic.all()):
        return _periodic_energy(kernel, particles, cell, graph.pbc, k_cutoff)
    of_atoms = is_periodic.index_select(0, graph.batch)
    molecules = (~of_atoms).nonzero().squeeze(1)
    energies = direct_sum(kernel, particles.select(molecules, graph.batch[molecules]), graph.n_structures)
    atoms, chosen = of_atoms.nonzero().squeeze(1), is_periodic.nonzero().squeeze(1)
    renumbered = (torch.cumsum(is_periodic, 0) - 1).index_select(0, graph.batch[atoms])
    periodic = _periodic_energy(kernel, particles.select(atoms, renumbered), cell[chosen], graph.pbc[chosen], k_cutoff)
    return energies.index_add(0, chosen, periodic)


def _periodic_energy(kernel: Kernel, particles: Particles, cell: Tensor, pbc: Tensor, k_cutoff: float) -> Tensor:
    largest_width = float(particles.widths.detach().max())
    lattice = make_lattice(particles.positions, particles.structures, cell, pbc, largest_width)
    if kernel == "dispersion" and bool(lattice.is_slab.any()):
        raise ValueError(
            "long-range dispersion needs three periodic directions or none, got a slab; make it periodic in all"
            " directions with vacuum on both sides: its images then act on it with the fourth power of the distance"
        )
    return exact_sum(kernel, particles, lattice, k_cutoff) - _corrections(kernel, particles, lattice)


def _corrections(kernel: Kernel, particles: Particles, lattice: Lattice) -> Tensor:
    """What the sum in reciprocal space counts too much: self terms, and the lack of a background."""
    amplitudes, structures = particles.amplitudes, particles.structures
    own = 0.5 * self_potential(kernel, particles.widths) * amplitudes.square().sum(dim=1)
    total = own.new_zeros(len(lattice.volume)).index_add(0, structures, own)
    if kernel == "dispersion":
        return total
    neutralising = background(amplitudes, particles.widths, structures, lattice.volume)
    return total - neutralising.masked_fill(lattice.is_slab, 0.0)
