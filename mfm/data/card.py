"""Dataset cards: what a dataset is, at which levels, in which units, under which licence."""

import dataclasses
import gzip
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import ase.data
import pydantic
import yaml

from mfm.config import Config, read_yaml, validate
from mfm.density.basis import DensityBasis
from mfm.fidelity import LevelOfTheory
from mfm.properties import PROPERTIES, get_property, parse_task
from mfm.units import conversion_factor

__all__ = ["CARD_FOLDER", "DatasetCard", "FileCard", "available_cards", "file_sha256", "load_card", "property_of"]

CARD_FOLDER = Path(__file__).parent / "cards"
"""Where the cards of the named datasets lie, one YAML file each."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def property_of(name: str) -> str:
    """Property that a property's or a task's name speaks of.

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> property_of("forces"), property_of("forces_dft")
    ('forces', 'forces')
    """
    if name in PROPERTIES:
        return name
    if any(name.startswith(f"{prop}_") for prop in PROPERTIES):
        return parse_task(name).property
    return get_property(name).name


def _check_units(units: dict[str, str]) -> dict[str, str]:
    for name, unit in units.items():
        if name == "positions":
            conversion_factor(unit, "Å")
        else:
            conversion_factor(unit, PROPERTIES[property_of(name)].unit)
    return units


def _read_level(value: Any) -> Any:
    return LevelOfTheory.from_mapping(value) if isinstance(value, Mapping) else value


Units = Annotated[dict[str, str], pydantic.AfterValidator(_check_units)]
"""Property, task or ``positions`` to a unit that measures it."""
Level = Annotated[
    LevelOfTheory,
    pydantic.BeforeValidator(_read_level),
    pydantic.PlainSerializer(dataclasses.asdict, return_type=dict[str, Any]),
]
Basis = Annotated[
    DensityBasis,
    pydantic.BeforeValidator(lambda value: DensityBasis.from_dict(value) if isinstance(value, Mapping) else value),
    pydantic.PlainSerializer(DensityBasis.to_dict, return_type=dict[str, Any]),
]


class FileCard(Config):
    """One file of a dataset, and how to read it."""

    path: str
    """Path inside the dataset folder, or name of the file."""
    sha256: str
    """SHA-256 of the file, 64 hexadecimal digits."""
    subset: str = "all"
    """Name under which the file is opened; files that share it are joined, structure by structure."""
    format: str | None = None
    """Format name; detected from the content if not given."""
    fidelity: str | None = None
    """Fidelity of the labels, where the file holds one level."""
    keys: dict[str, str] = {}
    """Property or task to the key it has in the file; everything the format knows, if empty."""
    units: Units = {}
    """Property or task to its unit in this file, over the format's own and the card's."""
    corrections: dict[str, float] = {}
    """Property to a factor that repairs a known defect of the file, applied after the units."""
    origin: str = ""
    """How the geometries were made, where the file does not say."""

    @pydantic.field_validator("sha256")
    @classmethod
    def _is_sha256(cls, value: str) -> str:
        if not _SHA256.fullmatch(value):
            raise ValueError("must be the 64 hexadecimal digits that `sha256sum FILE` prints")
        return value


class DatasetCard(Config):
    """Everything about a dataset that its numbers do not say."""

    name: str
    """Short name."""
    description: str = ""
    """What it is, in a few sentences."""
    source: str = ""
    """Where it came from: a DOI, a repository with its commit, or the program that made it."""
    licence: str = ""
    """SPDX name of the licence, or `unknown`."""
    citation: str = ""
    """What to cite."""
    levels: dict[str, Level] = {}
    """Fidelity to its level of theory."""
    units: Units = {}
    """Property or task to its unit in the source files; a store written by mfm is in mfm's units."""
    units_stated: bool = True
    """Whether units come from the file, its format, a card or the caller; false if the format's habit was assumed."""
    references: dict[str, dict[str, float]] = {}
    """Fidelity to energies of the isolated atoms by symbol, eV."""
    energy_zero: str = ""
    """What the energies count from, such as `total`, `free atoms` or `valence (GTH)`."""
    density_bases: dict[str, Basis] = {}
    """Fidelity to the basis that coefficients of its densities belong to."""
    noise_floor: dict[str, float] = {}
    """Task to the noise of its labels, in mfm's unit of the property."""
    test_molecules: tuple[str, ...] = ()
    """Molecules held out by the authors of the dataset; never trained on."""
    default_subset: str = "all"
    """Subset that is opened when none is named."""
    files: tuple[FileCard, ...] = ()
    """Files with their checksums."""
    provenance: dict[str, str] = {}
    """Program versions, commits, commands: anything needed to make it again."""

    @pydantic.model_validator(mode="after")
    def _is_consistent(self) -> "DatasetCard":
        for fidelity, atoms in self.references.items():
            if fidelity not in self.levels:
                known = ", ".join(self.levels) or "none"
                raise ValueError(f"`references` must name fidelities of `levels` ({known}), got `{fidelity}`")
            unknown = [symbol for symbol in atoms if symbol not in ase.data.atomic_numbers]
            if unknown:
                raise ValueError(
                    f"`references.{fidelity}` must have chemical symbols as keys, got {', '.join(unknown)}"
                )
        for task in self.noise_floor:
            parse_task(task)
        subsets = self.subsets
        if subsets and self.default_subset not in subsets and self.default_subset != "all":
            raise ValueError(f"`default_subset` must be one of {', '.join(subsets)}, got `{self.default_subset}`")
        return self

    @property
    def subsets(self) -> list[str]:
        """Names of the subsets of the files, in order."""
        return list(dict.fromkeys(file.subset for file in self.files))

    def to_yaml(self) -> str:
        """YAML text that :meth:`from_yaml` reads back; fields at their default are left out."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        content["levels"] = {
            fidelity: {key: value for key, value in level.items() if value not in ("", False)}
            for fidelity, level in self.model_dump(mode="json")["levels"].items()
        }
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)

    @classmethod
    def from_yaml(cls, text: str, source: str = "card") -> "DatasetCard":
        """Read what :meth:`to_yaml` wrote.

        Raises
        ------
        ValueError
            If it is not YAML or does not fit the schema; the message names every bad key.
        """
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{source} is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{source} must hold a mapping of keys to values, got {type(content).__name__}")
        return validate(cls, content, source)

    def replace(self, **changes: Any) -> "DatasetCard":
        """Copy with some fields changed, checked like a new card."""
        return validate(type(self), {**self.model_dump(), **changes}, f"card `{self.name}`")


def available_cards() -> list[str]:
    """Names of the cards that come with mfm."""
    return sorted(path.stem for path in CARD_FOLDER.glob("*.yaml"))


def load_card(source: str | Path) -> DatasetCard:
    """Card by name (of those that come with mfm) or by path of a YAML file.

    Raises
    ------
    ValueError
        If there is no such card or it does not fit the schema.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = CARD_FOLDER / f"{source}.yaml"
        if not path.is_file():
            known = ", ".join(available_cards()) or "(none)"
            raise ValueError(f"card must be a path ending in .yaml or one of {known}, got `{source}`")
    return validate(DatasetCard, read_yaml(path), source=f"card `{path.name}`")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; a gzipped file counts uncompressed."""
    with Path(path).open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    with gzip.open(path) as compressed:
        while block := compressed.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
