"""Text files, plain or gzipped."""

import gzip
import io
from pathlib import Path

__all__ = ["open_text"]


def open_text(path: Path) -> io.TextIOWrapper:
    """Open for reading as UTF-8, uncompressing what starts like a gzip file."""
    file = path.open("rb")
    compressed = file.read(2) == b"\x1f\x8b"
    file.close()
    return io.TextIOWrapper(gzip.GzipFile(path), "utf-8") if compressed else path.open(encoding="utf-8")
