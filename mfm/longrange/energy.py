"""Long-range energy of a batch in which molecules, slabs and crystals may be mixed."""

import math

import torch
from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.longrange.base import Particles
from mfm.longrange.direct import direct_sum
from mfm.longrange.exact import exact_sum
from mfm.longrange.kernels import Kernel, background, self_potential
from mfm.longrange.lattice import Lattice, check_periodicity, make_lattice
from mfm.longrange.mesh import mesh_shapes, mesh_sum

__all__ = ["MESH_SPACING", "WIDEST_WAVE", "long_range_energy"]

MESH_SPACING = 0.45
"""Spacing of the mesh in units of the smallest width; the relative error of the forces is then about 1e-4."""
WIDEST_WAVE = 5.6
"""k_c σ: the end of the sums in reciprocal space that goes with a smallest width. Where the window begins to fall,
e^{−(0.9 · 5.6)²/2} = 3e-6 of a wave's weight is left."""


def long_range_energy(
    kernel: Kernel, particles: Particles, graph: AtomicGraph, k_cutoff: float, mesh_above: int
) -> Tensor:
    """½ Σ_{i≠j} a_i a_j v_ij over all periodic images, by the way that fits each structure's `pbc`.

    Structures without periodicity are summed pair by pair, whatever their cell; those periodic in two directions as
    slabs; the others in reciprocal space, with a uniform background where they carry a net charge. Everything is
    computed in float64.

    Parameters
    ----------
    particles : Particles
        All atoms of the graph.
    graph : AtomicGraph
        Gives cells and periodicity. Fields ``reference_cell`` (n_structures, 3, 3) and, of slabs, ``slab_length``
        (n_structures,), Å, if there are, set the mesh, so that it stays the same while a cell breathes or a slab's
        atoms move along its normal.
    k_cutoff : float, Å⁻¹
        End of the exact sum in reciprocal space, :data:`WIDEST_WAVE` over the smallest width; sets the mesh too.
    mesh_above : int
        Structures with more atoms are summed on a mesh.

    Returns
    -------
    (n_structures,), eV, float64

    Raises
    ------
    ValueError
        If a structure is periodic in one direction, or in some direction without a cell vector, if dispersion is
        wanted for a slab, or if a cell is too small for a mesh.
    """
    check_periodicity(graph.pbc, graph.cell)
    is_periodic = graph.pbc.any(dim=1)
    if not bool(is_periodic.any()):
        return direct_sum(kernel, particles, graph.n_structures)
    energies = particles.positions.new_zeros(graph.n_structures)
    if not bool(is_periodic.all()):
        molecules, _ = _restrict(particles, ~is_periodic)
        energies = energies.index_add(
            0, (~is_periodic).nonzero().squeeze(1), direct_sum(kernel, molecules, int((~is_periodic).sum()))
        )
    lattice_particles, chosen = _restrict(particles, is_periodic)
    slab_length = graph.get("slab_length")
    slab_length = None if slab_length is None else slab_length.double()[chosen]
    lattice = make_lattice(lattice_particles, graph.cell.double()[chosen], graph.pbc[chosen], slab_length)
    if kernel == "dispersion" and bool(lattice.is_slab.any()):
        raise ValueError(
            "long-range dispersion needs three periodic directions or none, got a slab; make it periodic in all"
            " directions with vacuum on both sides: its images then act on it with the fourth power of the distance"
        )
    reference = graph.get("reference_cell")
    # a slab is summed in a cell of its own, whatever the third vector it came with
    given = lattice.cell if reference is None else reference.double()[chosen]
    reference = torch.where(lattice.is_slab[:, None, None], lattice.cell, given)
    periodic = _lattice_sums(kernel, lattice_particles, lattice, reference, k_cutoff, mesh_above)
    periodic = periodic - _corrections(kernel, lattice_particles, lattice)
    return energies.index_add(0, chosen, periodic)


def _restrict(particles: Particles, mask: Tensor) -> tuple[Particles, Tensor]:
    """Particles of some structures, renumbered, and the structures' old numbers."""
    chosen = mask.nonzero().squeeze(1)
    if len(chosen) == len(mask):
        return particles, chosen
    atoms = mask.index_select(0, particles.structures).nonzero().squeeze(1)
    renumbered = (torch.cumsum(mask, 0) - 1).index_select(0, particles.structures.index_select(0, atoms))
    return particles.select(atoms, renumbered), chosen


def _lattice_sums(
    kernel: Kernel, particles: Particles, lattice: Lattice, reference: Tensor, k_cutoff: float, mesh_above: int
) -> Tensor:
    """Sums in reciprocal space: exact for small structures, on meshes for large ones, one call per mesh shape."""
    n_structures = len(lattice.volume)
    counts = torch.bincount(particles.structures, minlength=n_structures)
    is_large = counts > mesh_above
    energies = particles.positions.new_zeros(n_structures)
    # structures of one call are padded to the largest, so they should cost about the same: within a factor of four
    sizes = torch.ceil(0.5 * torch.log2(counts * lattice.volume.detach())).masked_fill(is_large, math.inf)
    for size in torch.unique(sizes).tolist():
        if size != math.inf:
            some, chosen = _restrict(particles, sizes == size)
            energies = energies.index_add(0, chosen, exact_sum(kernel, some, lattice.select(chosen), k_cutoff))
    if not bool(is_large.any()):
        return energies
    large = is_large.nonzero().squeeze(1).tolist()
    shapes = mesh_shapes(reference[is_large], MESH_SPACING * WIDEST_WAVE / k_cutoff)
    for shape in dict.fromkeys(shapes):
        mask = torch.zeros_like(is_large)
        mask[[number for number, other in zip(large, shapes, strict=True) if other == shape]] = True
        some, chosen = _restrict(particles, mask)
        energies = energies.index_add(0, chosen, mesh_sum(kernel, some, lattice.select(chosen), shape))
    return energies


def _corrections(kernel: Kernel, particles: Particles, lattice: Lattice) -> Tensor:
    """What sums in reciprocal space count too much: self terms, and the lack of a background."""
    amplitudes, structures = particles.amplitudes, particles.structures
    own = 0.5 * self_potential(kernel, particles.widths) * amplitudes.square().sum(dim=1)
    total = own.new_zeros(len(lattice.volume)).index_add(0, structures, own)
    if kernel == "dispersion":
        return total
    neutralising = background(amplitudes, particles.widths, structures, lattice.volume)
    return total - neutralising.masked_fill(lattice.is_slab, 0.0)
