"""Open any dataset: shipped, benchmark, mfm store or foreign file."""

import gzip
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mfm.data.card import DatasetCard, FileCard, available_cards, file_sha256, load_card
from mfm.data.columns import FORMAT
from mfm.data.geometry_index import GeometryIndex
from mfm.data.readers import READERS, Reader, ReadOptions, Source
from mfm.data.readers.base import UNSPECIFIED
from mfm.data.readers.hdf5 import open_hdf5
from mfm.data.records import Record
from mfm.data.store import Store
from mfm.density.basis import merge_bases
from mfm.fidelity import merge_levels

__all__ = ["BENCHMARK_VARIABLE", "BUILTIN_FOLDER", "merge_stores", "open_dataset", "read_foreign"]

_LOGGER = logging.getLogger(__name__)

BENCHMARK_VARIABLE = "MFM_BENCHMARK_DATA"
"""Environment variable that names the folder of the benchmark files."""
BUILTIN_FOLDER = Path(__file__).parent / "builtin"
"""Where the datasets that come with mfm lie."""
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def open_dataset(
    source: str | Path,
    *,
    format: str | None = None,
    fidelity: str | None = None,
    keys: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    card: DatasetCard | str | Path | None = None,
) -> Store:
    """Open a dataset.

    Parameters
    ----------
    source : str or Path
        ``builtin:NAME``; ``benchmark:NAME`` or ``benchmark:NAME/SUBSET`` (files under the folder that
        ``MFM_BENCHMARK_DATA`` names, checked against their card); an mfm store; or a file or folder in a foreign
        format.
    format : str, optional
        Name of a foreign format; found from the content if not given.
    fidelity : str, optional
        What to call the level of theory of a file that holds one; which level to keep of a file that holds several.
    keys : mapping, optional
        Property or task to its key in the file; only these labels are read. ``-key`` is a gradient.
    units : mapping, optional
        Property, task or ``positions`` to a unit, where the file does not state it.
    card : DatasetCard, name or path, optional
        Gives levels, units, keys and references of a foreign file.

    Returns
    -------
    Store
        Mapped into memory if it is a store's file, else read into memory.

    Raises
    ------
    ValueError
        If there is no such file, its format is unknown, its checksum is not the card's, a key matches nothing, or
        a structure is not valid.

    Examples
    --------
    >>> from mfm.data import open_dataset
    >>> open_dataset("no-such-file.xyz")
    Traceback (most recent call last):
    ValueError: dataset `no-such-file.xyz` does not exist; give a file, a folder, builtin:NAME or benchmark:NAME
    """
    text = str(source)
    asked = {"format": format, "fidelity": fidelity, "keys": keys, "units": units, "card": card}
    for scheme, opener in (("builtin:", _open_builtin), ("benchmark:", _open_benchmark)):
        if text.startswith(scheme):
            refused = [name for name, value in asked.items() if value]
            if refused:
                raise ValueError(f"`{text}` has a card that says all of it, it takes no {', '.join(refused)}")
            return opener(text.removeprefix(scheme))
    path = _existing(Path(source))
    if _is_store(path):
        if keys or units or format or card:
            raise ValueError(f"`{path}` is an mfm store, it takes no format, keys, units or card")
        return _only(Store.open(path), fidelity)
    given = load_card(card) if isinstance(card, str | Path) else card
    options = ReadOptions(fidelity=fidelity, keys=dict(keys or {}), units=dict(units or {}))
    if given is not None:
        listed = next((file for file in given.files if Path(file.path).name == path.name), None)
        if listed is not None:
            _check_sum(path, listed)
        options = _with_card(options, given, listed)
    return _read(path, format, options, given)


def read_foreign(path: str | Path, options: ReadOptions, format: str | None = None) -> Source:
    """Records of a foreign file, streamed, and its card.

    Raises
    ------
    ValueError
        If the format is unknown or the file is not valid.
    """
    file = _existing(Path(path))
    reader = _named(format) if format else _detect(file)
    _LOGGER.info("reading `%s` as %s", file, reader.description)
    return reader.read(file, options)


def merge_stores(stores: Sequence[Store], card: DatasetCard) -> Store:
    """One store of all records; labels of the same structure at different levels come together.

    A structure that two stores label with the same task stays twice.

    Raises
    ------
    ValueError
        If one fidelity stands for two levels of theory, or for one that is not stated in two stores.
    """
    levels, bases = dict(card.levels), dict(card.density_bases)
    for store in stores:
        unstated = [fidelity for fidelity in store.fidelities if store.card.levels[fidelity] == UNSPECIFIED]
        if unstated and len(stores) > 1:
            raise ValueError(
                f"level of theory of fidelity `{unstated[0]}` is not stated by `{store.card.name}`, so it cannot be"
                " joined with other data; name the levels in a card"
            )
        levels = merge_levels(levels, store.card.levels, f"`{store.card.name}`")
        bases = merge_bases(bases, store.card.density_bases)
    return Store.from_records(_merged(stores), card.replace(levels=levels, density_bases=bases))


def _merged(sources: Sequence[Iterable[Record]]) -> Iterator[Record]:
    merged: list[Record] = []
    index = GeometryIndex()
    for records in sources:
        used: set[int] = set()
        for record in records:
            candidates = index.find(record.structure)
            fits = [i for i in candidates if i not in used and not merged[i].labels.keys() & record.labels.keys()]
            if fits:
                have = merged[fits[0]]
                labels, flags = {**have.labels, **record.labels}, {**have.flags, **record.flags}
                merged[fits[0]] = Record(have.structure, labels, have.molecule, have.origin, flags)
                used.add(fits[0])
            else:
                index.add(record.structure, len(merged))
                used.add(len(merged))
                merged.append(record)
    return iter(merged)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"dataset `{path}` does not exist; give a file, a folder, builtin:NAME or benchmark:NAME")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"`{path}` must hold at least one structure, got an empty file")
    return path


def _head(path: Path) -> bytes:
    """First bytes of a file, uncompressed; empty for a folder."""
    if path.is_dir():
        return b""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as compressed:
                return compressed.read(4096)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"cannot uncompress `{path}`, it may be truncated: {error}") from error
    return head


def _is_store(path: Path) -> bool:
    if not _head(path).startswith(_HDF5_MAGIC):
        return False
    with open_hdf5(path) as file:
        return file.attrs.get("format") == FORMAT


def _detect(path: Path) -> Reader:
    head = _head(path)
    for reader in READERS:
        if reader.matches(path, head):
            return reader
    hint = ""
    if head[:1] == b"\x80" or path.suffix in (".pkl", ".pickle", ".pt", ".lmdb"):
        hint = "; files of Python pickles can run code when opened and are never read"
    raise ValueError(
        f"format of `{path}` is not known; mfm reads its own stores and"
        f" {', '.join(f'{reader.name} ({reader.description})' for reader in READERS)}{hint}"
    )


def _named(name: str) -> Reader:
    for reader in READERS:
        if reader.name == name:
            return reader
    raise ValueError(f"format must be one of {', '.join(reader.name for reader in READERS)}, got `{name}`")


def _only(store: Store, fidelity: str | None) -> Store:
    if fidelity is None or fidelity in store.fidelities:
        return store
    raise ValueError(f"fidelity must be one of {', '.join(store.fidelities)} of `{store.card.name}`, got `{fidelity}`")


def _with_card(options: ReadOptions, card: DatasetCard, file: FileCard | None) -> ReadOptions:
    """Options filled up with what a card says of all its files, and of one of them if it lists it."""
    if file is None:
        units = {**card.units, **options.units}
        return ReadOptions(options.fidelity, options.keys, units, {}, card.levels, options.origin)
    return ReadOptions(
        fidelity=options.fidelity or file.fidelity,
        keys=options.keys or file.keys,
        units={**card.units, **file.units, **options.units},
        corrections=file.corrections,
        levels=card.levels,
        origin=options.origin or file.origin,
    )


def _read(path: Path, format: str | None, options: ReadOptions, card: DatasetCard | None) -> Store:
    source = read_foreign(path, options, format)
    if card is None:
        return Store.from_records(source.records, source.card)
    levels = merge_levels(card.levels, source.card.levels, f"`{path.name}`")
    references = card.references or source.card.references
    return Store.from_records(source.records, card.replace(levels=levels, references=references))


def _open_builtin(name: str) -> Store:
    path = BUILTIN_FOLDER / f"{name}.h5"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in BUILTIN_FOLDER.glob("*.h5"))) or "(none)"
        raise ValueError(f"builtin dataset must be one of {shipped}, got `{name}`")
    store = Store.open(path)
    if name not in available_cards():
        return store
    card = load_card(name)
    for file in card.files:
        _check_sum(path, file)
    return store.with_card(card)


def _open_benchmark(name: str) -> Store:
    card_name, _, subset = name.partition("/")
    card = load_card(card_name)
    folder = os.environ.get(BENCHMARK_VARIABLE)
    if not folder:
        raise ValueError(
            f"benchmark `{card_name}` needs {BENCHMARK_VARIABLE}: set it to the folder that holds"
            f" `{card.files[0].path if card.files else ''}`; the files come from {card.source}"
        )
    chosen = subset or card.default_subset
    files = [file for file in card.files if file.subset == chosen]
    if not files:
        raise ValueError(f"subset of `{card_name}` must be one of {', '.join(card.subsets)}, got `{chosen}`")
    sources, levels = [], dict(card.levels)
    for file in files:
        path = Path(folder) / file.path
        if not path.is_file():
            raise ValueError(f"file `{path}` of benchmark `{name}` does not exist; check {BENCHMARK_VARIABLE}")
        _check_sum(path, file)
        source = read_foreign(path, _with_card(ReadOptions(), card, file), file.format)
        levels = merge_levels(levels, source.card.levels, f"`{path.name}`")
        sources.append(source.records)
    return Store.from_records(sources[0] if len(sources) == 1 else _merged(sources), card.replace(levels=levels))


def _check_sum(path: Path, file: FileCard) -> None:
    got = file_sha256(path)
    if got != file.sha256:
        raise ValueError(
            f"`{path}` must have SHA-256 {file.sha256}, got {got}; it is not the file that the card describes:"
            " fetch it again, or correct the card"
        )
