"""How far a denoising loss can fall: with the rigid-body part of the noise in the target, and without.

Structures of one bent molecule of three atoms, displaced from a rest geometry by a known spread. What stays unknown of
the noise then has a closed form. Writes `results/floor.json` and `results/floor.png`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm.backbones import GauntConfig
from mfm.data import DatasetCard, Record, Store
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure, collate
from mfm.heads import TaskConfig
from mfm.model import NOISE, Domain, ModelConfig, build_model
from mfm.tracking import code_version
from mfm.training.denoising import NoisyDataset, add_denoiser
from mfm.training.experiment import TINY_BACKBONE, begin, processor, write_json

HERE = Path(__file__).parent
SIGMA = 0.05
REST = np.array([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [-0.5, 1.0, 0.0]])
NUMBERS = np.array([6, 8, 1])
N_STRUCTURES, BATCH = 512, 32


def main() -> int:
    """Train both ways for every spread and seed, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--spreads", type=float, nargs="+", default=[0.025], help="Å, of the structures themselves")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    begin()
    curves = [
        {"spread": spread, "seed": seed, "projected": projected, "loss": train(spread, seed, projected, options.steps),
         "floor": floor(spread, projected)}
        for spread in options.spreads for seed in options.seeds for projected in (True, False)
    ]  # fmt: skip
    found = {"sigma": SIGMA, "commit": code_version(), "processor": processor(), "curves": curves}
    write_json(options.results / "floor.json", found)
    draw(curves, options.results / "floor.png")
    for curve in curves:
        last = float(np.mean(curve["loss"][-options.steps // 5 :]))
        sys.stdout.write(
            json.dumps({**{k: v for k, v in curve.items() if k != "loss"}, "reached": round(last, 4)}) + "\n"
        )
    return 0


def floor(spread: float, projected: bool) -> float:
    """Least loss: s²/(s² + σ²) of the 3 visible of 9 directions, and, unless taken out, all of the 6 others."""
    return spread**2 / (spread**2 + SIGMA**2) * 3 / 9 + (0.0 if projected else 6 / 9)


def train(spread: float, seed: int, projected: bool, steps: int) -> list[float]:
    """Loss at every step."""
    store = structures(spread)
    level = {"none": LevelOfTheory(method="none")}
    domain = Domain(references={"none": dict.fromkeys((1, 6, 8), 0.0)}, levels=level)
    config = ModelConfig(backbone=GauntConfig(**TINY_BACKBONE), tasks={"energy_none": TaskConfig()})
    model = build_model(config, domain, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        add_denoiser(model)
    dataset = NoisyDataset(store, model.cutoff, SIGMA, seed, torch.float32)
    rest = torch.as_tensor(np.stack([store[i].structure.positions for i in range(N_STRUCTURES)]), dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    rng, losses = np.random.default_rng(seed), []
    for step in range(steps):
        chosen = rng.choice(N_STRUCTURES, BATCH, replace=False)
        graph = collate(dataset.batch(chosen.tolist(), step))
        target = graph[NOISE] if projected else (graph.positions - rest[chosen].reshape(-1, 3)) / SIGMA
        loss = (model(graph, [NOISE])[NOISE] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(round(loss.item(), 5))
    return losses


def structures(spread: float) -> Store:
    """Records of the molecule, displaced."""
    rng = np.random.default_rng(0)
    records = [
        Record(Structure(NUMBERS, REST + spread * rng.normal(size=(3, 3)), multiplicity=2), {}, "toy")
        for _ in range(N_STRUCTURES)
    ]
    return Store.from_records(records, DatasetCard(name="toy"))


def draw(curves: list[dict], path: Path) -> None:
    """Losses, smoothed over 20 steps, and their floors."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for curve in curves:
        colour = "C0" if curve["projected"] else "C3"
        smooth = np.convolve(curve["loss"], np.ones(20) / 20, mode="valid")
        axis.plot(np.arange(len(smooth)) + 20, smooth, color=colour, linewidth=1.0, alpha=0.8)
        axis.axhline(curve["floor"], color=colour, linestyle=":", linewidth=1.0)
    axis.axhline(6 / 9, color="0.5", linestyle="--", linewidth=0.8)
    axis.annotate("2/N", (0.98, 6 / 9), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4")
    axis.plot([], [], color="C0", label="rigid-body noise taken out")
    axis.plot([], [], color="C3", label="all noise in the target")
    axis.plot([], [], color="0.3", linestyle=":", label="closed form")
    axis.set(xlabel="optimiser step", ylabel="loss, in variances of the noise", ylim=(0, 1.1))
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
