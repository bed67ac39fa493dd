"""Write the checkpoint of the present format, with random weights, and what it predicts.

Run once when the format changes (``python tests/checkpoints/write.py``); never to make a failing test pass.
"""

import json
from pathlib import Path

import torch
from ase.build import molecule

from mfm.checkpoint import FORMAT, load_model, save_checkpoint
from mfm.graph import Structure, build_graph
from tests.tiny import tiny_model

if __name__ == "__main__":
    target = Path(__file__).parent / f"format-{FORMAT}.mfm"
    save_checkpoint(target, tiny_model(dtype=torch.float32), {"note": "random weights, for tests"})
    model = load_model(target, dtype=torch.float64)
    graph = build_graph(Structure.from_ase(molecule("CH3CH2OH")), model.cutoff, dtype=model.dtype)
    energies = {task: float(value) for task, value in model.predict(graph).items()}
    target.with_suffix(".json").write_text(json.dumps(energies, indent=1) + "\n", encoding="utf-8")
