"""A whole run: stages one after another, resumable at any step, recorded, evaluated at the end."""

import dataclasses
import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from mfm import tracking
from mfm.checkpoint import save_checkpoint
from mfm.device import choose_device
from mfm.evaluation.evaluate import Evaluation, evaluable, evaluate
from mfm.evaluation.plots import plot_learning_curves
from mfm.model import Domain, MFMModel, build_model
from mfm.training.callbacks import Interruption
from mfm.training.data import RunData, fit_domain
from mfm.training.history import History
from mfm.training.ions import start_from_ions
from mfm.training.ranks import ALONE, Ranks
from mfm.training.recipe import RunConfig
from mfm.training.resume import FORMAT, TrainingState, isolated_random_state, load_state, random_state, save_state
from mfm.training.stage import Stage, StageHooks, build_stage, fit_stage
from mfm.training.trainable import begin_stage, set_trainable
from mfm.training.transfer import inherit_domain, prepare_run, start_from

__all__ = ["RESOLVED_CONFIG", "STATE", "Supervision", "TrainResult", "train"]

logger = logging.getLogger(__name__)

RESOLVED_CONFIG = "config.yaml"
"""File in a run's folder with the whole configuration, defaults included."""
STATE = "state.pt"
"""File in a run's folder that it can be resumed from."""
_HISTORY = "history.jsonl"
_ENVIRONMENT = "environment.json"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run left."""

    finished: bool
    """Whether every stage is done; otherwise the run can be resumed."""
    folder: Path
    checkpoint: Path
    """The model; of an unfinished run, not there yet."""
    evaluations: Mapping[str, Evaluation]
    """``valid`` and ``test`` to errors; empty for a supervised run."""


class Supervision(NamedTuple):
    """What a search over settings asks of each of its runs."""

    parent_run: str
    """Key of the tracked run to nest this one under; empty if there is none."""
    settings: Mapping[str, Any]
    """Dotted key → value of what is searched; recorded with the run."""
    watch: Callable[[Mapping[str, float], float], bool]
    """Receives the metrics of a validation and the position in the recipe, in stages; returns whether to stop."""
    measure: Callable[[MFMModel, RunData], Mapping[str, float]]
    """Metrics of the trained model, recorded in place of test errors, tables, figures and the logged model."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the parts of a run share."""

    config: RunConfig
    folder: Path
    data: RunData
    model: MFMModel
    history: History
    tracker: tracking.Run
    interruption: Interruption
    parent: str
    """Checkpoint the weights came from, if any."""
    inherited: list[str]
    """Tasks that it had."""
    supervision: Supervision | None
    ranks: Ranks


def train(
    config: RunConfig,
    *,
    initial: str | Path | None = None,
    resume: bool = False,
    stop_after: tuple[str, int] | None = None,
    supervision: Supervision | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train every stage of a run, or the rest of it.

    The caller's random states and signal handlers are as before when it returns.

    Parameters
    ----------
    config : RunConfig
    initial : str or path, optional
        Checkpoint to take weights, references and scale from, also ``models:/NAME@ALIAS`` or ``runs:/RUN``.
    resume : bool
        Continue the run in the configuration's folder. On the CPU, with the same number of threads, the result is
        bit for bit that of a run that was never stopped.
    stop_after : (stage, steps), optional
        Stop in that stage after so many steps, as an interruption would.
    supervision : Supervision, optional
        Of a search that the run is part of.
    ranks : Ranks, optional
        Processes that train the model together; each of them calls this function with the same arguments. Rank 0 alone
        writes and evaluates, so others return no errors.

    Raises
    ------
    ValueError
        If data, tasks and stages do not fit, the folder holds another run, there is nothing complete to resume,
        several ranks are given to a run of a search, or the loss stops being finite.
    """
    if supervision is not None and ranks.size > 1:
        raise ValueError(
            "a run of a search trains in one process; let the search run several of them beside each other"
        )
    with isolated_random_state(config.seed), Interruption().caught() as interruption:
        run, state = _begin(config, initial, resume, interruption, supervision, ranks)
        status = "FAILED"
        try:
            if state is None:
                _save(run, 0, None)
            finished = _run_stages(run, state, stop_after)
            evaluations = _conclude(run) if finished and ranks.writes else {}
            status = "FINISHED" if finished else "KILLED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            run.tracker.finish(status)
    return TrainResult(finished, run.folder, run.folder / "model.mfm", evaluations)


def _begin(
    config: RunConfig,
    initial: str | Path | None,
    resume: bool,
    interruption: Interruption,
    supervision: Supervision | None,
    ranks: Ranks,
) -> tuple[_Run, TrainingState | None]:
    folder = Path(config.folder)
    state = load_state(folder / STATE) if resume else None
    if state is None and (folder / STATE).exists():
        raise ValueError(
            f"`{folder}` already holds a run; continue it with `mfm train --resume {folder}`, or name another folder"
            " with `--output`"
        )
    # what is recorded is the version that an alias means now
    source = "" if initial is None else tracking.resolve(initial)
    parent = tracking.open_model(source) if source else None
    inherited = [] if parent is None else parent.tasks
    config, data = prepare_run(config, parent, inherited if state is None else state["inherited"])
    if state is not None:
        _check_same_run(state, config, data, folder, ranks)
        model, origin = _restore(config, state), (state["parent"], state["inherited"])
    else:
        model, origin = _fresh_model(config, data, parent), (source, inherited)
    _check_parts(model, data)
    model.to(_device(config.device, ranks))
    ranks.wait()  # every rank has looked for an earlier run before this one leaves a trace
    if state is None and ranks.writes:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESOLVED_CONFIG).write_text(_to_yaml(config), encoding="utf-8")
        (folder / _HISTORY).unlink(missing_ok=True)
    tracker: tracking.Run = tracking.NoRun()
    if ranks.writes:
        tracker = _open_tracker(config, data, model, origin[0], resume, supervision)
    history = History(folder / _HISTORY)
    return _Run(config, folder, data, model, history, tracker, interruption, *origin, supervision, ranks), state


def _fresh_model(config: RunConfig, data: RunData, parent: MFMModel | None) -> MFMModel:
    tasks, method, dtype = config.model.tasks, config.data.references, _DTYPES[config.dtype]
    if parent is not None:
        return start_from(parent, config.model, inherit_domain(parent, tasks, data.new, method), config.seed, dtype)
    domain = fit_domain(data.train, tasks, config.model.backbone.cutoff, method)
    model = build_model(config.model, domain, config.seed, dtype)
    start_from_ions(model, data.train)
    return model


def _check_parts(model: MFMModel, data: RunData) -> None:
    """Refuse what could not be evaluated in the end before anything is trained."""
    for part, store in (("validation", data.valid), ("test", data.test)):
        try:
            if store is not None:
                evaluable(model, store)
        except ValueError as error:
            raise ValueError(f"{part} part: {error}") from error


def _restore(config: RunConfig, state: TrainingState) -> MFMModel:
    """Model as a state has it, with the domain it had: one that started from a parent cannot fit it to its data."""
    domain = Domain.from_dict(json.loads(state["domain"]))
    model = build_model(config.model, domain, config.seed, _DTYPES[config.dtype])
    if state["clock"] is not None:
        begin_stage(model, config.stages[state["stage"]])
    model.load_state_dict(state["model"])
    return model


def _check_same_run(state: TrainingState, config: RunConfig, data: RunData, folder: Path, ranks: Ranks) -> None:
    then, now = tracking.flatten(json.loads(state["config"])), tracking.flatten(config.model_dump(mode="json"))
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    if changed:
        raise ValueError(
            f"cannot resume `{folder}`: its configuration differs in {', '.join(changed[:5])}; restore it, or start a"
            " new run"
        )
    if state["data_digest"] != data.digest:
        raise ValueError(
            f"cannot resume `{folder}`: the training set must have digest {state['data_digest']}, got"
            f" {data.digest}; the data have changed"
        )
    if state["ranks"] != ranks.size:
        raise ValueError(
            f"cannot resume `{folder}`: it must be continued by as many processes as before, {state['ranks']}, got"
            f" {ranks.size}; launch it with that number"
        )


def _device(name: str, ranks: Ranks) -> torch.device:
    if ranks.size > 1 and name.startswith("cuda:"):
        raise ValueError(f"with several processes `device` must be auto, cpu or cuda, got `{name}`; each takes its own")
    device = choose_device(name)
    if ranks.size > 1 and device.type == "cuda":
        # SLURM may show each process its own GPU only
        return torch.device("cuda", ranks.local_rank % max(torch.cuda.device_count(), 1))
    return device


def _to_yaml(config: RunConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _open_tracker(
    config: RunConfig, data: RunData, model: MFMModel, parent: str, resume: bool, supervision: Supervision | None
) -> tracking.Run:
    if config.tracking == "none":
        return tracking.NoRun()
    folder, settings = Path(config.folder), config.tracking
    commit = tracking.code_version()
    tags = {
        "mfm.commit": commit,
        "mfm.dirty": str(commit.endswith("+changes")).lower(),
        "mfm.data": data.train.digest,
        "mfm.seed": str(config.seed),
        "mfm.fidelities": ",".join(model.fidelities),
        "mfm.init": parent or "random",
    }
    above = "" if supervision is None else supervision.parent_run
    tracker = tracking.start_run(folder, settings.experiment, config.name, tags, settings.directory, resume, above)
    (folder / _ENVIRONMENT).write_text(tracking.describe_environment(), encoding="utf-8")
    tracker.log_artifacts([folder / RESOLVED_CONFIG, folder / _ENVIRONMENT])
    flat = tracking.flatten(config.model_dump(mode="json", exclude={"stages"}))
    searched = {} if supervision is None else dict(supervision.settings)
    tracker.log_params({**searched, **flat, "n_parameters": sum(p.numel() for p in model.parameters())})
    for context, store in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        if store is not None:
            tracker.log_params({f"n_{context}": len(store)})
            tracker.log_dataset(store.card.name, config.data.train, store.digest, context)
    return tracker


def _run_stages(run: _Run, state: TrainingState | None, stop_after: tuple[str, int] | None) -> bool:
    first = 0 if state is None else state["stage"]
    if state is not None and run.ranks.writes:
        step = -1 if state["clock"] is None else int(state["clock"]["step"])
        current = run.config.stages[first].name if first < len(run.config.stages) else ""
        run.history.forget_after([stage.name for stage in run.config.stages[:first]], current, step)
    for number in range(first, len(run.config.stages)):
        if run.config.stages[number].skip:
            continue
        within = state if state is not None and number == first and state["clock"] is not None else None
        if not _run_stage(run, number, within, stop_after):
            return False
        _save(run, number + 1, None)
        if run.interruption.agreed(run.ranks) and number + 1 < len(run.config.stages):
            return False
    set_trainable(run.model, "all")
    return True


def _run_stage(run: _Run, number: int, state: TrainingState | None, stop_after: tuple[str, int] | None) -> bool:
    config = run.config.stages[number]
    child = run.tracker.child(config.name, {"mfm.stage": config.name})
    child.log_params(tracking.flatten(config.model_dump(mode="json")))
    stage = build_stage(run.model, run.data, run.config, number, state, run.ranks)

    def report(metrics: Mapping[str, float], step: int) -> None:
        if not run.ranks.writes:
            return
        run.history.append(config.name, metrics, step)
        child.log_metrics(metrics, step)
        validated = any(name.startswith("val/") for name in metrics)
        if validated and run.supervision is not None:
            position = number + min(stage.module.progress(), 1.0)
            run.interruption.requested |= run.supervision.watch(metrics, position)

    hooks = StageHooks(report, save=lambda current: _save(run, number, current))
    steps = stop_after[1] if stop_after is not None and stop_after[0] == config.name else None
    first = next(number for number, stage in enumerate(run.config.stages) if not stage.skip)
    status = "FAILED"
    try:
        finished = fit_stage(
            stage, run.config, run.interruption, hooks, state, steps, bool(run.parent) and number == first
        )
        status = "FINISHED" if finished else "KILLED"
        if finished and run.ranks.writes:
            path = run.folder / f"stage-{config.name}.mfm"
            save_checkpoint(path, run.model, _provenance(run, config.name, stage.clock.state_dict()))
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        child.finish(status)
    return finished


def _save(run: _Run, number: int, stage: Stage | None) -> None:
    """Write the state: within a stage, or before the stage of that number."""
    if not run.ranks.writes:
        return
    state = TrainingState(
        format=FORMAT,
        config=json.dumps(run.config.model_dump(mode="json")),
        data_digest=run.data.digest,
        stage=number,
        clock=None if stage is None else stage.clock.state_dict(),
        model=run.model.state_dict(),
        average=None if stage is None else stage.average.state_dict(),
        optimizer=None if stage is None else stage.optimizer.state_dict(),
        random=random_state(),
        domain=json.dumps(run.model.domain.to_dict()),
        parent=run.parent,
        inherited=run.inherited,
        ranks=run.ranks.size,
    )
    save_state(run.folder / STATE, state)


def _provenance(run: _Run, stage: str, clock: Mapping[str, float]) -> dict[str, Any]:
    return {
        "run": run.config.model_dump(mode="json"),
        "stage": stage,
        "clock": dict(clock),
        "device": tracking.device_name(next(run.model.parameters()).device),
        "commit": tracking.code_version(),
        "packages": {name: importlib.metadata.version(name) for name in ("torch-geometric", "lightning")},
        "data": {"name": run.data.train.card.name, "digest": run.data.train.digest, "n_train": len(run.data.train)},
        "parent": run.parent,
    }


def _conclude(run: _Run) -> dict[str, Evaluation]:
    """Save the model, evaluate it, draw and record."""
    checkpoint = run.folder / "model.mfm"
    save_checkpoint(checkpoint, run.model, _provenance(run, "final", {}))
    if run.supervision is not None:
        run.tracker.log_metrics(run.supervision.measure(run.model, run.data), step=0)
        run.tracker.log_artifacts([run.folder / _HISTORY])
        return {}
    files, evaluations = [run.folder / _HISTORY], {}
    metrics: dict[str, float] = {}
    for split, prefix, store in (("valid", "val", run.data.valid), ("test", "test", run.data.test)):
        if store is None:
            continue
        evaluations[split] = evaluate(run.model, store)
        files += evaluations[split].write(run.folder / "evaluation", split)
        metrics |= evaluations[split].flat(prefix)
    curves, boundaries = run.history.curves()
    shown = {name: points for name, points in curves.items() if name.startswith(("val/", "train/loss"))}
    shown = {
        name: points
        for name, points in shown.items()
        if "rmse" not in name and not name.endswith(("mae_mev", "mae_me_angstrom"))
    }
    if shown:
        files.append(run.folder / "evaluation" / "learning_curves.png")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        plot_learning_curves(shown, files[-1], boundaries)
    run.tracker.log_artifacts([path for path in files if path.exists()])
    run.tracker.log_checkpoint(checkpoint, run.config.name, {"fidelities": ",".join(run.model.fidelities)}, metrics)
    return evaluations
