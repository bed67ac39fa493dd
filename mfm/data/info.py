"""What is in a dataset: counts, coverage, ranges, duplicates, suspicions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mfm.data.geometry_index import GeometryIndex
from mfm.data.references import fit_references, residual_energies
from mfm.data.splits import by_molecule, leaks
from mfm.data.store import Store
from mfm.data.suspicions import find_suspicions
from mfm.properties import PROPERTIES, parse_task

__all__ = ["describe", "format_description"]


def describe(store: Store) -> dict[str, Any]:
    """Everything worth knowing about a dataset, ready for JSON.

    Returns
    -------
    dict
        ``card`` (name, source, licence, levels), ``structures`` (counts, elements, charges …), ``labels`` (a row per
        task: count, range, mean, spread), ``flags`` (a row per quality flag), ``split`` (the parts that training makes
        by default, and what leaks), ``duplicates``, ``notes`` and ``suspicions`` (lists of lines).
    """
    records = _structures(store)
    return {
        "card": {
            "name": store.card.name,
            "source": store.card.source,
            "licence": store.card.licence,
            "digest": store.digest,
            "levels": {name: store.card.levels[name].label for name in store.fidelities},
        },
        "structures": records,
        "labels": {task: _label(store, task) for task in store.labels if store.coverage(task).any()},
        "flags": {name: row for name in store.flags if (row := _flag(store, name))},
        "split": _split(store),
        "duplicates": _duplicates(store),
        "notes": _notes(store, records),
        "suspicions": find_suspicions(store),
    }


def format_description(description: Mapping[str, Any]) -> str:
    """Text of what :func:`describe` returned."""
    card, structures = description["card"], description["structures"]
    lines = [f"{card['name']}  (digest {card['digest']})"]
    lines += [f"  {key:<12}{card[key]}" for key in ("source", "licence") if card[key]]
    n, low, high = structures["count"], structures["atoms"]["min"], structures["atoms"]["max"]
    size = f"{low}" if low == high else f"{low} to {high}"
    molecules = "1 molecule" if structures["molecules"] == 1 else f"{structures['molecules']} molecules"
    lines += [
        "",
        f"structures    {n} of {molecules}, {size} atoms each, {structures['periodic']} periodic",
        "elements      " + ", ".join(f"{symbol} {count}" for symbol, count in structures["elements"].items()),
        "charges       " + ", ".join(f"{charge} ({count})" for charge, count in structures["charges"].items()),
        "multiplicity  " + ", ".join(f"{spin} ({count})" for spin, count in structures["multiplicities"].items()),
    ]
    if structures["origins"]:
        lines.append("origins       " + ", ".join(f"{name} ({k})" for name, k in structures["origins"].items()))
    lines.append("duplicates    " + _duplicate_line(description["duplicates"]))
    lines += ["", "level of theory"]
    lines += [f"  {fidelity:<12}{level}" for fidelity, level in card["levels"].items()]
    titles = "".join(f"{key:>13}" for key in ("min", "mean", "max", "spread"))
    lines += ["", f"{'label':<24}{'count':>8}{'share':>7}  {'unit':<8}{titles}"]
    for task, row in description["labels"].items():
        numbers = "".join(f"{row[key]:>13.7g}" for key in ("min", "mean", "max", "spread"))
        lines.append(f"{task:<24}{row['count']:>8}{100 * row['count'] / n:>6.0f}%  {row['unit']:<8}{numbers}")
    if any(task.startswith("energy") for task in description["labels"]):
        lines.append("(spread of energies: root mean square per atom after least-squares atomic references; of the")
        lines.append(" rest: root mean square)")
    lines += _flag_lines(description["flags"]) + _split_lines(description["split"], list(card["levels"]))
    for title in ("notes", "suspicions"):
        if description[title]:
            lines += ["", title, *(f"  - {line}" for line in description[title])]
    return "\n".join(lines) + "\n"


def _structures(store: Store) -> dict[str, Any]:
    composition = store.composition(store.elements).sum(axis=0)
    structures = list(store.structures())
    origins = Counter(origin for origin in store.origins.tolist() if origin)
    return {
        "count": len(store),
        "molecules": len(np.unique(store.molecules)),
        "atoms": {"min": int(store.n_atoms.min()), "max": int(store.n_atoms.max()), "total": int(store.n_atoms.sum())},
        "periodic": sum(bool(s.pbc.any()) for s in structures),
        "boxed": sum(bool(s.cell.any() and not s.pbc.any()) for s in structures),
        "elements": {chemical_symbols[z]: int(n) for z, n in zip(store.elements, composition, strict=True)},
        "charges": {str(q): n for q, n in sorted(Counter(s.charge for s in structures).items())},
        "multiplicities": {str(m): n for m, n in sorted(Counter(int(s.multiplicity or 1) for s in structures).items())},
        "origins": dict(origins.most_common(10)),
    }


def _label(store: Store, task: str) -> dict[str, Any]:
    prop, fidelity = parse_task(task)
    values = store.values(task)
    if prop == "energy":
        labelled = store.subset(store.coverage(task))
        references = fit_references(labelled, [fidelity], "least_squares")[fidelity]
        deviation = residual_energies(labelled, task, references) / labelled.n_atoms
    else:
        deviation = values
    return {
        "count": int(store.coverage(task).sum()),
        "unit": PROPERTIES[prop].unit,
        "min": float(values.min()),
        "mean": float(values.mean()),
        "max": float(values.max()),
        "spread": float(np.sqrt(np.mean(np.square(deviation)))),
    }


def _flag(store: Store, name: str) -> dict[str, Any]:
    """Range of a quality flag; empty if no record carries it. An infinite gap is left out."""
    values = store.flag(name)
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    return {"count": len(values), "min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def _flag_lines(flags: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not flags:
        return []
    lines = ["", f"{'quality flag':<24}{'count':>8}" + "".join(f"{key:>13}" for key in ("min", "mean", "max"))]
    for name, row in flags.items():
        lines.append(f"{name:<24}{row['count']:>8}" + "".join(f"{row[key]:>13.4g}" for key in ("min", "mean", "max")))
    return lines


def _split(store: Store) -> dict[str, Any]:
    """Parts of the default split by molecule, and what leaks; empty for fewer molecules than parts."""
    try:
        parts = {part: store.subset(rows) for part, rows in by_molecule(store).items()}
    except ValueError:
        return {}
    rest = store.subset(np.flatnonzero(~np.isin(store.molecules, parts["test"].molecules)))
    rows = {
        part: {
            "structures": len(chosen),
            "molecules": len(np.unique(chosen.molecules)),
            **{name: int(chosen.coverage(f"energy_{name}").sum()) for name in store.fidelities},
        }
        for part, chosen in parts.items()
    }
    return {"parts": rows, "fixed": bool(store.card.test_molecules), "leaks": leaks(rest, parts["test"])}


def _split_lines(split: Mapping[str, Any], fidelities: Sequence[str]) -> list[str]:
    if not split:
        return []
    columns = ("structures", "molecules", *fidelities)
    lines = ["", f"{'split by molecule':<24}" + "".join(f"{name:>13}" for name in columns)]
    for part in sorted(split["parts"], key=["train", "valid", "test"].index):
        row = split["parts"][part]
        lines.append(f"{part:<24}" + "".join(f"{row[name]:>13}" for name in columns))
    lines.append(
        f"({'the card names the test molecules' if split['fixed'] else 'at random, seed 0'}; energies by level)"
    )
    lines += [
        f"leakage       {line}" for line in split["leaks"] or ["none: no molecule, no part of a cluster, no geometry"]
    ]
    return lines


def _duplicates(store: Store) -> dict[str, int]:
    """Structures whose geometry occurred before, and how many of them have another energy."""
    index = GeometryIndex()
    energies = {task: store.energies(task) for task in store.labels if parse_task(task).property == "energy"}
    n_equal = n_contradicting = 0
    for i, structure in enumerate(store.structures()):
        earlier = index.find(structure)
        if earlier:
            n_equal += 1
            n_contradicting += any(abs(values[i] - values[earlier[0]]) > 1e-4 for values in energies.values())
        index.add(structure, i)
    return {"geometries": n_equal, "contradicting": n_contradicting}


def _duplicate_line(duplicates: Mapping[str, int]) -> str:
    if duplicates["geometries"] == 0:
        return "none"
    return f"{duplicates['geometries']} geometries occur again, {duplicates['contradicting']} with another energy"


def _notes(store: Store, structures: Mapping[str, Any]) -> list[str]:
    notes = []
    if not store.card.units_stated:
        notes.append("the file does not state its units: those its format is usually written in were assumed")
    unspecified = [name for name in store.fidelities if store.card.levels[name].method == "unspecified"]
    if unspecified:
        notes.append(f"the level of theory of {', '.join(unspecified)} is not stated: give a card before mixing it")
    if structures["boxed"]:
        notes.append(f"{structures['boxed']} structures have a cell but are not periodic: the cell is ignored")
    for fidelity in store.fidelities:
        energy, forces = store.coverage(f"energy_{fidelity}"), store.coverage(f"forces_{fidelity}")
        n_missing = int((energy & ~forces).sum())
        if forces.any() and n_missing:
            notes.append(f"{n_missing} structures have `energy_{fidelity}` without `forces_{fidelity}`")
    bare = len(store) - int(np.any([store.coverage(task) for task in store.labels], axis=0).sum())
    if bare:
        notes.append(f"{bare} structures carry no label")
    return notes
