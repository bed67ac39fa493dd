"""mfm's backbone beside the field's, trained for the same processor time on the same frames, or timed in turn.

    python experiments/backbone_benchmark/run.py --peer all --data acac --cpu-minutes 10 --seed 0 --json OUT
    python experiments/backbone_benchmark/run.py --peer all --speed --json OUT

See the README beside this file.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_data import BENCHMARKS, load_benchmark, write_structures
from benchmark_data import TestSet as Labels
from systems import SYSTEMS, speed_systems
from workers import ENVIRONMENTS, PEERS, Job, SpeedWorker, check_peer, train_and_predict

from mfm.tracking import code_version

_ROUNDS = 7
_SECONDS = 0.3
"""Least processor time of one measurement."""
_METRICS = (
    "energy_rmse_mev", "energy_mae_mev", "forces_rmse_mev_per_angstrom", "forces_mae_mev_per_angstrom",
)  # fmt: skip


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="mfm", help=f"mfm, {', '.join(PEERS)}, several with commas, or all")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--data", help=f"{', '.join(BENCHMARKS)}, or a file with energies and forces")
    task.add_argument("--speed", action="store_true", help="time energies with forces, and training steps")
    parser.add_argument("--cpu-minutes", type=float, default=10.0, help="budget of training (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; the frames stay the same")
    parser.add_argument("--test-frames", type=int, help="most frames of each test set, evenly spaced (default all)")
    parser.add_argument("--learning-rate", type=float, help="in place of the peer's own; for one peer")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="edit of mfm.yaml")
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å (default 5)")
    parser.add_argument("--core", type=int, default=0, help="core the workers are bound to; -1 for none (default 0)")
    parser.add_argument("--allocator", choices=("tuned", "default"), default="tuned", help="glibc's; see the README")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="for --speed; several with commas (default all)")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"for --speed (default {_ROUNDS})")
    parser.add_argument("--envs", type=Path, default=ENVIRONMENTS, help="folder of the peers' environments")
    parser.add_argument("--keep", type=Path, help="folder to keep frames, predictions and logs in")
    parser.add_argument("--json", type=Path, help="file to write results to")
    options = parser.parse_args(arguments)
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    options.peers = ["mfm", *PEERS] if options.peer == "all" else options.peer.split(",")
    try:
        for peer in options.peers:
            check_peer(peer, options.envs)
    except ValueError as error:
        parser.error(str(error))
    if options.learning_rate is not None and len(options.peers) > 1:
        parser.error(f"`--learning-rate` is for one peer, got {', '.join(options.peers)}")
    for name in ("cpu_minutes", "cutoff", "rounds"):
        if getattr(options, name) <= 0:
            parser.error(f"`--{name.replace('_', '-')}` must be above 0, got {getattr(options, name)}")
    options.systems = options.systems.split(",")
    unknown = [name for name in options.systems if name not in SYSTEMS]
    if unknown:
        parser.error(f"`--systems` must be of {', '.join(SYSTEMS)}, got `{unknown[0]}`")
    if options.core >= 0 and hasattr(os, "sched_getaffinity") and options.core not in os.sched_getaffinity(0):
        parser.error(f"`--core` must be one of {sorted(os.sched_getaffinity(0))}, got {options.core}")


def make_job(options: argparse.Namespace, folder: Path, tests: Sequence[str]) -> Job:
    """What every worker of this run is told."""
    return Job(
        mode="speed" if options.speed else "train",
        folder=str(folder.absolute()),
        tests=list(tests),
        cpu_seconds=60 * options.cpu_minutes,
        seed=options.seed,
        cutoff=options.cutoff,
        learning_rate=options.learning_rate,
        overrides=options.override,
        core=None if options.core < 0 else options.core,
    )


def errors(predictions: Mapping[str, np.ndarray], labels: Labels) -> dict[str, float]:
    """Errors of a test set: energies of whole structures in meV, force components in meV/Å.

    Raises
    ------
    RuntimeError
        If the predictions have another shape than the labels, or are not finite.
    """
    found: dict[str, float] = {"n_frames": len(labels.energies)}
    for name, unit, target in (
        ("energy", "mev", labels.energies),
        ("forces", "mev_per_angstrom", labels.forces),
    ):
        predicted = predictions["energies" if name == "energy" else "forces"]
        if predicted.shape != target.shape or not np.isfinite(predicted).all():
            raise RuntimeError(f"predicted {name} must be finite and of shape {target.shape}, got {predicted.shape}")
        difference = 1000 * (predicted - target)
        found[f"{name}_rmse_{unit}"] = float(np.sqrt(np.mean(np.square(difference))))
        found[f"{name}_mae_{unit}"] = float(np.mean(np.abs(difference)))
    return found


def measure_accuracy(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train each peer, one after another, and compare its predictions with the labels it never saw."""
    data = load_benchmark(options.data, folder, options.cutoff, options.test_frames)
    job = make_job(options, folder, list(data.tests))
    results: dict[str, Any] = {}
    for peer in options.peers:
        print(f"{peer}: training on {data.n_train} frames for {options.cpu_minutes:g} CPU minutes", file=sys.stderr)
        account = train_and_predict(peer, options.envs, job, options.allocator == "tuned")
        tests = {}
        for name, labels in data.tests.items():
            with np.load(folder / f"{peer}_{name}.npz") as predictions:
                tests[name] = errors(predictions, labels)
        results[peer] = {"tests": tests, **account}
        print(accuracy_table({peer: results[peer]}), file=sys.stderr, flush=True)
    digests = {name: labels.digest for name, labels in data.tests.items()}
    return {
        "data": options.data, "n_train": data.n_train, "digests": {"train": data.digest, **digests},
        "cpu_minutes": options.cpu_minutes, "peers": results,
    }  # fmt: skip


def measure_speed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time each system with each peer in turn, round after round."""
    structures = speed_systems()
    for name in options.systems:
        write_structures(folder / f"{name}.npz", structures[name], options.cutoff)
    job = make_job(options, folder, options.systems)
    workers: list[SpeedWorker] = []
    times: dict[str, dict[str, list[float]]] = {peer: {name: [] for name in options.systems} for peer in options.peers}
    try:
        for peer in options.peers:
            workers.append(SpeedWorker(peer, options.envs, job, options.allocator == "tuned"))
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            for name in options.systems:
                for worker in workers:
                    kind = "train" if name.startswith("train") else "evaluate"
                    times[worker.peer][name].append(worker.measure(name, kind, _SECONDS))
    finally:
        for worker in workers:
            worker.close()
    results = {worker.peer: {**worker.account, **_speeds(times[worker.peer], structures)} for worker in workers}
    return {"rounds": options.rounds, "peers": results}


def _speeds(times: Mapping[str, Sequence[float]], structures: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    trained = [name for name in medians if name.startswith("train")]
    rate = {"training_structures_per_second": len(structures[trained[0]]) / medians[trained[0]]} if trained else {}
    return {"seconds": dict(times), "median_seconds": medians, **rate}


def accuracy_table(peers: Mapping[str, Any]) -> str:
    """Markdown: a row per peer and test set."""
    lines = ["| peer | test | E RMSE, meV | E MAE | F RMSE, meV/Å | F MAE | steps | parameters |", "|---" * 8 + "|"]
    for peer, result in peers.items():
        for name, found in result["tests"].items():
            values = " | ".join(f"{found[metric]:.2f}" for metric in _METRICS)
            lines.append(f"| {peer} | {name} | {values} | {result['steps']} | {result['n_parameters']} |")
    return "\n".join(lines)


def speed_table(peers: Mapping[str, Any]) -> str:
    """Markdown: median ms per call, and how many times mfm's that is."""
    names = list(next(iter(peers.values()))["median_seconds"])
    titles = ["training, structures/s" if name.startswith("train") else f"{SYSTEMS[name]}, ms" for name in names]
    lines = [f"| peer | {' | '.join(titles)} |", "|---" * (len(names) + 1) + "|"]
    base = peers.get("mfm", {}).get("median_seconds")
    for peer, result in peers.items():
        cells = []
        for name in names:
            seconds = result["median_seconds"][name]
            training = name.startswith("train")
            value = result["training_structures_per_second"] if training else 1000 * seconds
            ratio = f" ({seconds / base[name]:.2f}×)" if base and peer != "mfm" else ""
            cells.append(f"{value:.1f}{ratio}")
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What ran it."""
    model = platform.processor() or platform.machine()
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = next(line.split(":")[1].strip() for line in described.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name
    return {"processor": model, "cores": os.cpu_count(), "platform": platform.platform()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_arguments(arguments)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    place = tempfile.TemporaryDirectory() if options.keep is None else nullcontext(str(options.keep))
    with place as folder:
        try:
            found = (measure_speed if options.speed else measure_accuracy)(options, Path(folder))
        except (ValueError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    described = {
        "kind": "speed" if options.speed else "accuracy", "commit": code_version(), "machine": machine(),
        "date": time.strftime("%Y-%m-%d"), "seed": options.seed, "cutoff": options.cutoff,
        "allocator": options.allocator, "overrides": options.override,
    }  # fmt: skip
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**described, **found}, indent=1, ensure_ascii=False), encoding="utf-8")
    print((speed_table if options.speed else accuracy_table)(found["peers"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
