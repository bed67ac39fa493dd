"""Arrays and structures as the bytes that a labelling store keeps."""

import io
from collections.abc import Mapping

import numpy as np

from mfm.structure import Structure

__all__ = ["pack_arrays", "pack_structure", "unpack_arrays", "unpack_structure"]


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays by name, of any shapes, as one npz archive."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack_arrays(data: bytes | None) -> dict[str, np.ndarray]:
    """What :func:`pack_arrays` packed; nothing where there is no data."""
    if data is None:
        return {}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def pack_structure(structure: Structure) -> bytes:
    """Atomic numbers, positions (Å), charge and multiplicity of a molecule."""
    return pack_arrays(
        {
            "atomic_numbers": structure.atomic_numbers,
            "positions": structure.positions,
            "charge_multiplicity": np.array([structure.charge, structure.multiplicity]),
        }
    )


def unpack_structure(data: bytes) -> Structure:
    """What :func:`pack_structure` packed."""
    arrays = unpack_arrays(data)
    charge, multiplicity = arrays["charge_multiplicity"].tolist()
    return Structure(arrays["atomic_numbers"], arrays["positions"], charge=charge, multiplicity=multiplicity)
