"""Starting from another model: its tasks, its weights, and references with which new levels start where it stands."""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from mfm.data.references import (
    ReferenceMethod,
    References,
    fit_references,
    references_beside,
    shifted_references,
)
from mfm.data.store import Store
from mfm.density.basis import DensityBasis, merge_bases
from mfm.evaluation.evaluate import batched
from mfm.fidelity import merge_levels
from mfm.graph import build_graph
from mfm.heads import TaskConfig
from mfm.heads.joins import CHARGES, evaluation_order
from mfm.model import Domain, MFMModel, ModelConfig, build_model
from mfm.properties import parse_task
from mfm.training.data import RunData, charges_by_level, fit_domain, prepare_data, wanted_bases
from mfm.training.recipe import RunConfig

__all__ = ["adopt", "drop_unusable", "inherit_domain", "inherited_bases", "prepare_run", "start_from"]

logger = logging.getLogger(__name__)

FINE_TUNING_RATE = 1e-3
"""Learning rate of a run that starts from another model, where its recipe states none."""


def prepare_run(
    config: RunConfig, parent: MFMModel | None, inherited: Collection[str] = ()
) -> tuple[RunConfig, RunData]:
    """Data of a run, and its recipe as it is trained: with what it takes over from a parent, if it starts from one.

    Parameters
    ----------
    inherited : collection of str
        Tasks that the parent had when the run began.

    Raises
    ------
    ValueError
        As :func:`adopt`, :func:`drop_unusable` and :func:`mfm.training.data.prepare_data`.
    """
    if parent is not None:
        config = adopt(_gentle(config), parent)
    data = prepare_data(config.data, list(config.model.tasks), inherited)
    return (config if parent is None else drop_unusable(config, parent, data.new)), data


def _gentle(config: RunConfig) -> RunConfig:
    """The recipe with a lower learning rate, if it does not state one: that of a fresh model undoes what one knows."""
    if "lr" in config.optimizer.model_fields_set:
        return config
    if all(stage.lr is not None or stage.skip for stage in config.stages):
        return config
    logger.info(
        "learning rate of stages that state none: %g, since the model starts from another one", FINE_TUNING_RATE
    )
    optimizer = config.optimizer.model_copy(update={"lr": FINE_TUNING_RATE})
    return config.model_copy(update={"optimizer": optimizer})


def adopt(config: RunConfig, parent: MFMModel) -> RunConfig:
    """The recipe of a run that goes on from a parent: the parent's representation, and all of its tasks.

    Tasks that both name keep the parent's join and take the recipe's weights. ``tasks: all`` of a stage goes on to
    mean the tasks that the recipe names.

    Raises
    ------
    ValueError
        If the recipe states another representation (a long-range energy may be added where the parent has no charges),
        or joins a task of the parent to something else.
    """
    tasks = dict(parent.config.tasks)
    for name, task in config.model.tasks.items():
        tasks[name] = task if name not in tasks else _same_join(name, tasks[name], task)
    stated = {name: task.model_dump() for name, task in tasks.items()}
    model = {**_representation(config.model, parent), "tasks": stated}
    stages = [
        {**stage.model_dump(), **({"tasks": config.stage_tasks(stage)} if stage.objective == "supervised" else {})}
        for stage in config.stages
    ]
    content = {**config.model_dump(), "model": model, "stages": stages}
    return RunConfig.model_validate(content)


def _representation(mine: ModelConfig, parent: MFMModel) -> dict[str, Any]:
    """Configuration of the parent, with what the recipe may add to it."""
    found = parent.config.model_dump()
    for name in sorted(mine.model_fields_set - {"tasks"}):
        value, known = getattr(mine, name), getattr(parent.config, name)
        if value != known and (name != "long_range" or known is not None or parent.charge_state is not None):
            raise ValueError(
                f"`model.{name}` must be the parent checkpoint's to start from its weights, got another; leave it out"
            )
        found[name] = mine.model_dump()[name]
    return found


def _same_join(name: str, theirs: TaskConfig, mine: TaskConfig) -> TaskConfig:
    if mine.base is not None and (mine.join, mine.base) != (theirs.join, theirs.base):
        joined = f"{theirs.join} to `{theirs.base}`" if theirs.base else "independent"
        raise ValueError(
            f"task `{name}` must be joined as in the parent checkpoint ({joined}), got {mine.join} to `{mine.base}`;"
            " leave the join out, or give the level another fidelity name"
        )
    return mine.model_copy(update={"anchor": theirs.anchor, "conditioned": theirs.conditioned})


def drop_unusable(config: RunConfig, parent: MFMModel, store: Store) -> RunConfig:
    """The recipe without those tasks of the parent that know nothing of an element in the new data.

    Raises
    ------
    ValueError
        If a task of the recipe's stages builds on such a task, or is one without labels to learn the element from; or
        what is left is no model.
    """
    supervised = [stage for stage in config.stages if stage.objective == "supervised"]
    wanted = {task for stage in supervised for task in config.stage_tasks(stage)}
    tasks = config.model.tasks
    lost: dict[str, tuple[str, str]] = {}  # task → the one of its chain that lacks elements, and which
    for name in evaluation_order(tasks):
        known: Collection[int] | None = parent.domain.references.get(parse_task(name).fidelity)
        if name in parent.tasks and name not in parent.energies:
            known = parent.elements
        unseen = [] if known is None else [chemical_symbols[z] for z in store.elements if z not in known]
        base = tasks[name].base
        if base is not None and base in lost:
            lost[name] = lost[base]
        elif unseen and not store.coverage(name).any():
            lost[name] = name, ", ".join(unseen)
        else:
            continue
        origin, elements = lost[name]
        if name in wanted:
            raise ValueError(
                f"task `{name}` needs `{origin}`, whose parent knows no {elements} and whose labels the training data"
                " lack; join the task to another, or let it be independent"
            )
        logger.warning("%s of the parent is left out: it knows no %s", name, elements)
    if not lost:
        return config
    kept = {name: task.model_dump() for name, task in tasks.items() if name not in lost}
    # validated: what a run and its checkpoint could not be read back with must not be trained
    return RunConfig.model_validate({**config.model_dump(), "model": {**config.model.model_dump(), "tasks": kept}})


def inherit_domain(parent: MFMModel, tasks: Mapping[str, TaskConfig], store: Store, method: ReferenceMethod) -> Domain:
    """Domain of a model that goes on from a parent with new data.

    What the parent's weights were trained with stays: references of its fidelities, scale, neighbours. The references
    of a new level that builds on one of the parent's are fitted to what the parent leaves of its labels, so that the
    new level starts with the parent's errors and no offset.

    Parameters
    ----------
    tasks : mapping of str to TaskConfig
        Tasks of the new model.
    store : Store
        Its training data.
    method : str
        Of references that the parent does not have, see :func:`mfm.data.references.fit_references`.

    Raises
    ------
    ValueError
        If a fidelity of both stands for different levels of theory, or references cannot be fitted.
    """
    old = parent.domain
    references: References = {}
    energies = {name: tasks[name] for name in evaluation_order(tasks) if parse_task(name).property == "energy"}
    for name, task in energies.items():
        references[parse_task(name).fidelity] = _references(parent, name, task, store, references, method)
    fidelities = list(dict.fromkeys(parse_task(name).fidelity for name in tasks))
    stated = {fidelity: level for fidelity, level in store.card.levels.items() if fidelity in fidelities}
    levels = merge_levels(old.levels, stated, "the training data")
    return dataclasses.replace(
        old,
        references=references,
        levels={fidelity: levels[fidelity] for fidelity in fidelities},
        charges=tuple(sorted({*old.charges, *(charge for charge, _ in store.charge_states)})),
        charges_of=_merged_charges(old, charges_by_level(store, tasks)),
        multiplicities=tuple(sorted({*old.multiplicities, *(number for _, number in store.charge_states)})),
        atomic_numbers=tuple(sorted({*old.elements, *store.elements})),
        scale=old.scale if parent.energies else fit_domain(store, energies, parent.cutoff, method).scale,
        density_bases=inherited_bases(old.density_bases, wanted_bases(store, tasks)),
    )


def _merged_charges(old: Domain, new: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Total charges that each level has seen with the parent's data or the new; see :attr:`Domain.charges_of`."""
    known = {fidelity: old.charges_of.get(fidelity, old.charges) for fidelity in old.levels}
    return {f: tuple(sorted({*known.get(f, ()), *new.get(f, ())})) for f in dict.fromkeys((*known, *new))}


def inherited_bases(old: Mapping[str, DensityBasis], new: Mapping[str, DensityBasis]) -> dict[str, DensityBasis]:
    """The parent's bases and those of the data.

    Raises
    ------
    ValueError
        If they differ, or the data have elements that the parent's weights have no place for.
    """
    for fidelity, both in merge_bases(old, new).items():
        if fidelity in old and both != old[fidelity]:
            raise ValueError(
                f"`density_{fidelity}` of the parent must know the elements of the new densities,"
                f" {', '.join(chemical_symbols[z] for z in new[fidelity].elements)}, got"
                f" {', '.join(chemical_symbols[z] for z in old[fidelity].elements)}; train it anew under another"
                " fidelity"
            )
    return {**new, **old}


def _references(
    parent: MFMModel, name: str, task: TaskConfig, store: Store, done: References, method: ReferenceMethod
) -> dict[int, float]:
    fidelity = parse_task(name).fidelity
    known = parent.domain.references.get(fidelity)
    if known is not None:
        unseen = [z for z in store.elements if z not in known] if store.coverage(name).any() else []
        return {**fit_references(store, [fidelity], method)[fidelity], **known} if unseen else dict(known)
    if task.base is None or method == "isolated_atoms":
        return fit_references(store, [fidelity], method)[fidelity]
    base = parse_task(task.base).fidelity
    if base not in parent.domain.references:
        return references_beside(store, fidelity, base, done[base])
    labelled = store.subset(store.coverage(name))
    differences = labelled.energies(name) - _energies(parent, task.base, labelled)
    logger.info(
        "%s starts from the parent's %s, which leaves %.3f eV (rms) of its energies before offsets are fitted",
        name, task.base, float(np.sqrt(np.mean(differences**2))),
    )  # fmt: skip
    return shifted_references(labelled, done[base], differences)


def _energies(model: MFMModel, task: str, store: Store) -> np.ndarray:
    """Total energies (n_records,), eV, of one task."""
    device = next(model.parameters()).device
    graphs = (build_graph(record.structure, model.cutoff, dtype=model.dtype) for record in store)
    return np.concatenate([model.predict(batch.to(device), [task])[task].cpu().numpy() for batch in batched(graphs)])


def start_from(parent: MFMModel, config: ModelConfig, domain: Domain, seed: int, dtype: torch.dtype) -> MFMModel:
    """Fresh model with every weight of the parent that it has a place for; heads of shared tasks are kept.

    Parameters
    ----------
    domain : Domain
        From :func:`inherit_domain`.
    seed : int
        Of the weights that the parent does not have.

    Raises
    ------
    ValueError
        If the representation of the two differs, or charges of the parent that others build on are left out.
    """
    model = build_model(config, domain, seed, dtype)
    _check_charges(parent, model)
    mine, theirs = model.state_dict(), parent.state_dict()
    usable = {name: value for name, value in theirs.items() if name in mine and mine[name].shape == value.shape}
    # a last layer whose equivariants no head of the parent needed does not have them
    grown = model.electrons is not None and parent.electrons is None
    absent = [name for name in mine if name.startswith("backbone.") and name not in usable]
    absent = [name for name in absent if name in theirs or not grown]
    if absent:
        raise ValueError(f"the parent's backbone must fit, but `{absent[0]}` has another shape or is not there")
    fresh = sorted({".".join(name.split(".")[:2]) for name in mine if name not in usable})
    logger.info("weights taken from the parent; fresh: %s", ", ".join(fresh) or "none")
    model.load_state_dict(usable, strict=False)
    return model


def _check_charges(parent: MFMModel, model: MFMModel) -> None:
    """Refuse to make the charge state itself of what the parent learned as an offset to it."""
    if parent.electrons is None or model.electrons is None:
        return
    for fidelity in parent.electrons.offsets:
        if (fidelity, CHARGES) in model.electrons.bases and fidelity not in model.electrons.offsets:
            raise ValueError(
                f"charges of `{fidelity}` are an offset to those of another level of the parent, and that level is left"
                " out; add training data with its labels, or give the new charges another fidelity name"
            )
