"""A model against the labels of a dataset: one table per fidelity."""

import csv
import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mfm.data.dataset import GraphDataset
from mfm.data.readers.base import UNSPECIFIED
from mfm.data.store import Store
from mfm.density.basis import merge_bases
from mfm.density.whitening import orthonormal
from mfm.derivatives import DERIVATIVES
from mfm.evaluation.densities import density_errors
from mfm.evaluation.metrics import Prediction, errors, errors_by_element, errors_by_group, report_unit
from mfm.evaluation.plots import plot_parity, thinned
from mfm.fidelity import merge_levels
from mfm.graph import AtomicGraph, collate
from mfm.model import MFMModel
from mfm.properties import PROPERTIES, parse_task

__all__ = [
    "Evaluation",
    "batched",
    "evaluable",
    "evaluate",
    "labelled_rows",
    "model_graphs",
    "predict_labelled",
    "read_points",
]

logger = logging.getLogger(__name__)

_IN_SPACE = {
    "NMAE, %": "nmae_percent",
    "of the fitted label, %": "nmae_fit_percent",
    "of free atoms, %": "nmae_free_atoms_percent",
    "dipole, mD": "dipole_millidebye",
    "electrons, e": "electrons_e",
}
"""Columns of the table of densities, see :func:`mfm.evaluation.densities.density_errors`."""
_MOST_ATOMS = 2048
_MOST_POINTS = 5000
"""Points per task that are kept for comparisons with other models: 40 kB."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Errors of a model on a dataset."""

    dataset: str
    digest: str
    n_structures: int
    levels: dict[str, str]
    """Fidelity to the label of its level of theory."""
    metrics: dict[str, dict[str, float]]
    """Task to metric to value, see :func:`mfm.evaluation.metrics.errors`."""
    by_element: dict[str, dict[str, dict[str, float]]]
    """Task to element to metrics, for atomic properties."""
    by_molecule: dict[str, dict[str, dict[str, float]]]
    """Task to molecule to metrics."""
    predictions: dict[str, Prediction] = dataclasses.field(repr=False)
    """Task to what was compared; energies without their atomic references."""

    def to_json(self) -> str:
        """Everything but the single predictions."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del content["predictions"]
        return json.dumps(content, indent=1, ensure_ascii=False)

    def flat(self, split: str) -> dict[str, float]:
        """Metrics named ``split/task/quantity_unit``."""
        return {f"{split}/{task}/{name}": value for task, row in self.metrics.items() for name, value in row.items()}

    def rows(self) -> list[dict[str, str]]:
        """Cells of the table: a row per task."""
        table = []
        for task, found in self.metrics.items():
            unit, fidelity = report_unit(task), parse_task(task).fidelity
            row = {"fidelity": fidelity, "level of theory": self.levels.get(fidelity, ""), "task": task}
            row |= {"labels": str(int(found["count"])), "unit": unit.symbol}
            row |= {kind.upper(): f"{found[f'{kind}_{unit.suffix}']:.3f}" for kind in ("mae", "rmse")}
            for kind in ("mae", "rmse"):
                value = found.get(f"{kind}_{unit.suffix}_per_atom")
                row[f"{kind.upper()} per atom"] = "" if value is None else f"{value:.3f}"
            table.append(row)
        return table

    def to_markdown(self) -> str:
        """Table in Markdown, below a line on the dataset."""
        head = f"`{self.dataset}` ({self.n_structures} structures, digest {self.digest})\n\n{_table(self.rows())}"
        densities = [
            {"density": task} | {title: f"{found[key]:.3g}" if key in found else "" for title, key in _IN_SPACE.items()}
            for task, found in self.metrics.items()
            if parse_task(task).property == "density"
        ]
        return head + ("\n" + _table(densities) if densities else "")

    def groups_to_markdown(self, kind: Literal["element", "molecule"]) -> str:
        """Table of mean absolute errors, a row per element or molecule and a column per task."""
        groups = self.by_element if kind == "element" else self.by_molecule
        names = sorted({name for found in groups.values() for name in found})
        table = []
        for name in names:
            row: dict[str, str] = {kind: name}
            for task, found in groups.items():
                unit = report_unit(task)
                value = found.get(name, {}).get(f"mae_{unit.suffix}")
                row[f"{task} MAE, {unit.symbol}"] = "" if value is None else f"{value:.3f}"
            table.append(row)
        return _table(table)

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``name.json``, ``.md``, ``.csv``, ``_parity.npz`` and, per fidelity, ``_parity_FIDELITY.png``.

        Returns
        -------
        list of Path
            What was written. The points in ``_parity.npz`` are those of the figures, see :func:`read_points`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(self.to_json(), encoding="utf-8")
        (folder / f"{name}.md").write_text(self.to_markdown(), encoding="utf-8")
        table = self.rows()
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        _write_points(self.predictions, folder / f"{name}_parity.npz")
        figures = []
        for fidelity in dict.fromkeys(parse_task(task).fidelity for task in self.predictions):
            shown = {task: found for task, found in self.predictions.items() if parse_task(task).fidelity == fidelity}
            figures.append(folder / f"{name}_parity_{fidelity}.png")
            plot_parity(shown, figures[-1], title=f"{self.dataset}, {fidelity}, energies without atoms")
        return [*(folder / f"{name}{end}" for end in (".json", ".md", ".csv", "_parity.npz")), *figures]


def _write_points(predictions: Mapping[str, Prediction], path: Path) -> None:
    arrays = {}
    for task, found in predictions.items():
        chosen = thinned(found.target.reshape(-1), _MOST_POINTS)
        arrays[f"target/{task}"] = found.target.reshape(-1)[chosen].astype(np.float32)
        arrays[f"predicted/{task}"] = found.predicted.reshape(-1)[chosen].astype(np.float32)
    np.savez_compressed(path, **arrays)


def read_points(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Task to (labels, predictions), each (n,), in the property's unit, of a file that :meth:`Evaluation.write` left.

    Energies are without their atomic references.
    """
    with np.load(path) as file:
        tasks = [name.removeprefix("target/") for name in file if name.startswith("target/")]
        return {task: (file[f"target/{task}"], file[f"predicted/{task}"]) for task in tasks}


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def evaluable(model: MFMModel, store: Store, tasks: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """Tasks that the model predicts and the dataset has labels of: (direct, derivatives).

    Parameters
    ----------
    tasks : sequence of str, optional
        What to keep; all if not given.

    Raises
    ------
    ValueError
        If nothing can be compared, a fidelity is another level of theory in the dataset than for the model, or the
        dataset has elements that the model does not know.
    """
    direct, derivatives = [], []
    for task in store.labels:
        if (tasks is not None and task not in tasks) or not store.coverage(task).any():
            continue
        name, fidelity = parse_task(task)
        if task in model.tasks:
            if name == "density":
                merge_bases(model.domain.density_bases, store.card.density_bases)  # refuses what cannot be compared
            direct.append(task)
        elif name in DERIVATIVES and f"energy_{fidelity}" in model.tasks:
            derivatives.append(task)
        else:
            continue
        levels = [known.get(fidelity, UNSPECIFIED) for known in (model.domain.levels, store.card.levels)]
        if UNSPECIFIED not in levels:
            merge_levels({fidelity: levels[0]}, {fidelity: levels[1]}, f"`{store.card.name}`")  # refuses another level
        seen = model.domain.elements_of(fidelity)
        unknown = sorted(set(store.subset(np.flatnonzero(store.coverage(task))).elements) - seen)
        if unknown:
            raise ValueError(
                f"elements with `{task}` in `{store.card.name}` must be among the model's {sorted(seen)} at that level,"
                f" got {unknown} as well; the model was not trained on them"
            )
    if not direct and not derivatives:
        known = [task for task in store.labels if store.coverage(task).any()]
        raise ValueError(
            f"the model predicts {', '.join(model.tasks)}, but the {len(store)} structures of `{store.card.name}` have"
            f" labels of {', '.join(known) or 'nothing'}; name the level of the file with `fidelity`"
        )
    return direct, derivatives


def batched(graphs: Iterable[AtomicGraph], max_atoms: int = _MOST_ATOMS) -> Iterator[AtomicGraph]:
    """Batches of consecutive graphs with at most `max_atoms` atoms, or one graph that has more."""
    waiting: list[AtomicGraph] = []
    n_atoms = 0
    for graph in graphs:
        if waiting and n_atoms + graph.n_atoms > max_atoms:
            yield collate(waiting)
            waiting, n_atoms = [], 0
        waiting.append(graph)
        n_atoms += graph.n_atoms
    if waiting:
        yield collate(waiting)


def predict_labelled(
    model: MFMModel, batches: Iterable[AtomicGraph], direct: Sequence[str], derivatives: Sequence[str]
) -> dict[str, Prediction]:
    """Predictions beside labels over batches in order; the model's mode is kept.

    Parameters
    ----------
    batches : iterable of AtomicGraph
        On any device; labels are the model's targets (energies without references).
    direct, derivatives : sequence of str
        Tasks to ask the model for.
    """
    device = next(model.parameters()).device
    parts: dict[str, list[Prediction]] = {task: [] for task in (*direct, *derivatives)}
    asked = list(direct) + [_energy_of(task) for task in derivatives if _energy_of(task) not in direct]
    was_training = model.training
    model.eval()
    first = 0
    try:
        for batch in batches:
            on_device = batch.to(device)
            with torch.enable_grad():
                outputs = model(on_device, asked, derivatives)
            for task, found in parts.items():
                found.append(_compare(task, outputs[task], on_device, first))
            first += batch.n_structures
    finally:
        model.train(was_training)
    return {task: _concatenate(found) for task, found in parts.items()}


def _energy_of(task: str) -> str:
    return f"energy_{parse_task(task).fidelity}"


def _compare(task: str, output: torch.Tensor, batch: AtomicGraph, first: int) -> Prediction:
    """Rows of one batch that have a label."""
    per_atom = PROPERTIES[parse_task(task).property].per == "atom"
    label, output = batch[task], output.detach()
    labelled = torch.isfinite(label.flatten(1) if label.dim() > 1 else label.unsqueeze(1)).all(dim=1).cpu().numpy()
    if parse_task(task).property == "density":
        label, output = (orthonormal(rows, batch, task) for rows in (label, output))
    target, predicted = (rows.cpu().double().numpy() for rows in (label.detach(), output))
    structure = batch.batch.cpu().numpy() if per_atom else np.arange(batch.n_structures)
    numbers = batch.atomic_numbers.cpu().numpy() if per_atom else None
    sizes = np.diff(batch.ptr.cpu().numpy())
    return Prediction(predicted, target, structure + first, sizes[structure], numbers).select(labelled)


def _concatenate(parts: Sequence[Prediction]) -> Prediction:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    numbers = None if parts[0].atomic_numbers is None else joined("atomic_numbers")
    return Prediction(joined("predicted"), joined("target"), joined("structure"), joined("n_atoms"), numbers)


def model_graphs(model: MFMModel, store: Store, tasks: Sequence[str]) -> Iterator[AtomicGraph]:
    """Graphs of a dataset as the model wants them: its cutoff, precision and references."""
    dataset = GraphDataset(store, model.cutoff, tasks, model.domain.references, model.dtype, cache=False)
    return (dataset[i] for i in range(len(dataset)))


def labelled_rows(store: Store, tasks: Sequence[str]) -> np.ndarray:
    """Positions of the records that carry any of these labels: a model need not see the others."""
    return np.flatnonzero(np.any([store.coverage(task) for task in tasks], axis=0))


def evaluate(
    model: MFMModel, store: Store, tasks: Sequence[str] | None = None, max_atoms: int = _MOST_ATOMS
) -> Evaluation:
    """Errors of a model on every label of a dataset that it predicts, on the model's device and in its precision.

    Parameters
    ----------
    tasks : sequence of str, optional
        Labels to compare; all if not given.
    max_atoms : int
        Most atoms in a batch.

    Raises
    ------
    ValueError
        If nothing can be compared, or the dataset has elements that the model does not know.
    """
    direct, derivatives = evaluable(model, store, tasks)
    rows = labelled_rows(store, [*direct, *derivatives])
    graphs = model_graphs(model, store.subset(rows), [*direct, *derivatives])
    predictions = {
        task: dataclasses.replace(found, structure=rows[found.structure])
        for task, found in predict_labelled(model, batched(graphs, max_atoms), direct, derivatives).items()
    }
    metrics = {task: errors(task, found) for task, found in predictions.items()}
    for task in metrics:
        if parse_task(task).property == "density":
            metrics[task] |= density_errors(model, store, task)
    return Evaluation(
        dataset=store.card.name,
        digest=store.digest,
        n_structures=len(store),
        levels={fidelity: level.label for fidelity, level in store.card.levels.items()},
        metrics=metrics,
        by_element={task: errors_by_element(task, found) for task, found in predictions.items()},
        by_molecule={task: errors_by_group(task, found, store.molecules) for task, found in predictions.items()},
        predictions=predictions,
    )
