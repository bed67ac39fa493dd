"""Foreign formats: one file each, listed in :data:`READERS`."""

from mfm.data.readers import aimnet, ani, ase_db, deepmd, extxyz, physnet, rmd17, runner, spice
from mfm.data.readers.base import Reader, ReadOptions, Source

__all__ = ["READERS", "ReadOptions", "Reader", "Source"]

READERS: tuple[Reader, ...] = (
    Reader("rmd17", "revised MD17 npz", rmd17.matches, rmd17.read),
    Reader("physnet", "PhysNet npz", physnet.matches, physnet.read),
    Reader("spice", "SPICE release HDF5", spice.matches, spice.read),
    Reader("ani", "ANI-1x, ANI-1ccx and ANI-2x HDF5", ani.matches, ani.read),
    Reader("aimnet", "AIMNet2 HDF5", aimnet.matches, aimnet.read),
    Reader("ase_db", "ASE database, also as schnetpack writes it", ase_db.matches, ase_db.read),
    Reader("deepmd", "DeePMD-kit npy folder", deepmd.matches, deepmd.read),
    Reader("runner", "RuNNer / n2p2 input.data", runner.matches, runner.read),
    Reader("extxyz", "extended XYZ, plain or gzipped", extxyz.matches, extxyz.read),
)
"""Every foreign format, in the order in which its test is tried."""
