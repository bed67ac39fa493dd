"""Infrared spectrum of a molecule that training has not seen: dynamics and normal modes, beside the level's own modes.

Relaxes the molecule with the model and with the level itself, takes the normal modes of both, and runs dynamics with
the model. One JSON file per part; a part that is there is not computed again.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import BFGS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.integrate import trapezoid

from mfm import MFMCalculator, tracking
from mfm.checkpoint import load_model
from mfm.data import open_dataset
from mfm.evaluation.infrared import absorption_of_dynamics, infrared_spectrum
from mfm.labelling.dft import label_dft
from mfm.labelling.levels import LEVELS, DensityFunctionalLevel, Level, TightBindingLevel
from mfm.labelling.xtb import label_xtb
from mfm.structure import Structure
from mfm.training.experiment import begin, processor, write_json

HERE = Path(__file__).parent
STEP = 0.005
"""Å, of central differences."""
BROAD = 10.0
"""cm⁻¹, half width of the lines that are drawn for normal modes."""


class LevelCalculator(Calculator):
    """A level of theory as an ASE calculator; a geometry is computed once."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "dipole"]

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level
        self.known: dict[bytes, dict[str, Any]] = {}

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Fill ``results``; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        place = atoms.positions.round(9).tobytes()
        if place not in self.known:
            structure = Structure(atoms.numbers, atoms.positions)
            if isinstance(self.level, DensityFunctionalLevel):
                values = label_dft(structure, self.level).values
            elif isinstance(self.level, TightBindingLevel):
                values = label_xtb(structure, self.level).values
            else:
                raise SystemExit(f"`--reference` must be dft, dft_lite or xtb, got {self.level.identifier}")
            self.known[place] = {name: values[name] for name in self.implemented_properties}
            self.known[place]["energy"] = float(self.known[place]["energy"])
        self.results = dict(self.known[place])

    def born_effective_charges(self, atoms: ase.Atoms) -> np.ndarray:
        """∂μ_a/∂r_ib by central differences, (n_atoms, 3, 3), at the geometries that the Hessian needs too."""
        moved, found = atoms.copy(), np.zeros((len(atoms), 3, 3))
        moved.calc = self
        for atom, axis in np.ndindex(len(atoms), 3):
            ends = []
            for sign in (1.0, -1.0):
                moved.positions[:] = atoms.positions
                moved.positions[atom, axis] += sign * STEP
                ends.append(moved.get_dipole_moment())
            found[atom, :, axis] = (ends[0] - ends[1]) / (2.0 * STEP)
        return found


def main() -> int:
    """Compute what is missing, then draw."""
    options = parse_arguments()
    begin()
    start = geometry(options)
    model = {"model": hashlib.sha256(options.model.read_bytes()).hexdigest()[:16], "fidelity": options.fidelity}
    molecule = {"molecule": options.molecule}
    runs = {name: getattr(options, name) for name in ("runs", "picoseconds", "temperature", "resolution")}
    parts: dict[str, tuple[Callable[[ase.Atoms, argparse.Namespace], dict[str, Any]], dict[str, Any]]] = {
        "model": (normal_modes, model | molecule),
        "reference": (reference_modes, {"level": LEVELS[options.reference].identifier} | molecule),
        "dynamics": (dynamics, model | molecule | runs),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (part, settings) in parts.items():
        path = options.results / f"{options.molecule_name}-{name}.json"
        if not path.exists():
            made = {"commit": tracking.code_version(), "processor": processor()}
            write_json(path, {**settings, **part(start.copy(), options), **made})
        found[name] = json.loads(path.read_text(encoding="utf-8"))
        if other := {key: found[name][key] for key, value in settings.items() if found[name][key] != value}:
            raise SystemExit(f"`{path}` is of {other}, not {settings}; remove it, or choose other `--results`")
    draw(found, options.results / f"{options.molecule_name}.png")
    table = report(found)
    (options.results / f"{options.molecule_name}.md").write_text(table, encoding="utf-8")
    sys.stdout.write(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint with energies and dipoles")
    parser.add_argument("--fidelity", default="dft")
    parser.add_argument("--reference", default="dft", choices=["dft", "dft_lite", "xtb"], help="level of the reference")
    parser.add_argument("--data", default="builtin:chno-mini", help="where the molecule is taken from")
    parser.add_argument("--molecule", default="C=N", help="SMILES in the dataset (default C=N, which it holds out)")
    parser.add_argument("--molecule-name", default="methanimine", help="names files and titles")
    parser.add_argument("--runs", type=int, default=8, help="starts of dynamics (default 8)")
    parser.add_argument("--picoseconds", type=float, default=4.0, help="of each (default 4)")
    parser.add_argument("--temperature", type=float, default=300.0, help="K (default 300)")
    parser.add_argument("--resolution", type=float, default=10.0, help="cm⁻¹ (default 10)")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    return parser.parse_args()


def geometry(options: argparse.Namespace) -> ase.Atoms:
    """A neutral closed-shell geometry of the molecule with the smallest forces."""
    store = open_dataset(options.data)
    records = [store[int(row)] for row in np.flatnonzero(store.molecules == options.molecule)]
    records = [record for record in records if record.structure.charge == 0 and record.structure.multiplicity == 1]
    if not records:
        raise SystemExit(f"`--molecule` must be one of {options.data}, got `{options.molecule}`")
    labels = [name for name in store.labels if name.startswith("forces")]
    forces = {label: [r for r in records if label in r.labels] for label in labels}
    label = max(labels, key=lambda name: len(forces[name]), default="")
    if not label or not forces[label]:
        raise SystemExit(f"{options.data} has no forces of {options.molecule}; choose another `--data`")
    best = min(forces[label], key=lambda r: float(np.abs(r.labels[label]).max()))
    return best.structure.to_ase()


def calculator(options: argparse.Namespace, dtype: torch.dtype | None = None) -> MFMCalculator:
    return MFMCalculator(load_model(options.model, dtype=dtype), fidelity=options.fidelity, device="cpu")


def normal_modes(atoms: ase.Atoms, options: argparse.Namespace) -> dict[str, Any]:
    """Of the model."""
    atoms.calc = calculator(options, torch.float64)
    return modes(atoms)


def reference_modes(atoms: ase.Atoms, options: argparse.Namespace) -> dict[str, Any]:
    """Of the level itself."""
    atoms.calc = LevelCalculator(LEVELS[options.reference])
    return modes(atoms)


def relax(atoms: ase.Atoms, largest: float) -> None:
    if not BFGS(atoms, logfile=None).run(fmax=largest, steps=200):
        raise SystemExit(f"{atoms.get_chemical_formula()} does not relax to forces below {largest} eV/Å")


def modes(atoms: ase.Atoms) -> dict[str, Any]:
    relax(atoms, 0.003)
    found = infrared_spectrum(atoms, STEP)
    return {
        "wavenumbers": found.wavenumbers.tolist(),
        "intensities": found.intensities.tolist(),
        "positions": atoms.positions.tolist(),
        "symbols": atoms.get_chemical_symbols(),
        "dipole": float(np.linalg.norm(atoms.get_dipole_moment())),
    }


def dynamics(atoms: ase.Atoms, options: argparse.Namespace) -> dict[str, Any]:
    """Absorption of the model's trajectories, in its own precision."""
    atoms.calc = calculator(options)
    relax(atoms, 0.01)
    found = absorption_of_dynamics(
        atoms,
        options.picoseconds,
        options.runs,
        options.temperature,
        resolution=options.resolution,
        progress=options.molecule_name,
    )
    return {"wavenumbers": found.wavenumbers.tolist(), "absorption": found.absorption.tolist()}


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Dynamics above, normal modes of model and level as lines of equal width below."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    run = found["dynamics"]
    above.plot(run["wavenumbers"], run["absorption"], color="C0", linewidth=1)
    above.set_title(f"dynamics of the model at {run['temperature']:.0f} K, classical nuclei", fontsize=9)
    grid = np.linspace(0.0, 4000.0, 4001)
    for name, sign, color in (("model", 1.0, "C0"), ("reference", -1.0, "k")):
        lines = zip(found[name]["wavenumbers"], found[name]["intensities"], strict=True)
        curve = sum(height * BROAD / np.pi / ((grid - place) ** 2 + BROAD**2) for place, height in lines)
        below.plot(grid, sign * np.asarray(curve), color=color, linewidth=1, label=f"normal modes, {name}")
    below.legend(fontsize=8)
    below.set_xlabel("wavenumber, cm⁻¹")
    for axis in (above, below):
        axis.set_xlim(0.0, 4000.0)
        axis.set_ylabel("km/mol per cm⁻¹")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def report(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: modes in order of their wavenumbers, and areas."""
    model, level, run = found["model"], found["reference"], found["dynamics"]
    lines = ["| mode, cm⁻¹: level | model | intensity, km/mol: level | model |", "|" + " --- |" * 4]
    columns = (level["wavenumbers"], model["wavenumbers"], level["intensities"], model["intensities"])
    lines += [f"| {a:.0f} | {b:.0f} | {c:.1f} | {d:.1f} |" for a, b, c, d in zip(*columns, strict=True)]
    area = float(trapezoid(run["absorption"], run["wavenumbers"]))
    error = float(np.abs(np.subtract(model["wavenumbers"], level["wavenumbers"])).mean())
    return (
        "\n".join(lines)
        + f"\n\nMean error {error:.0f} cm⁻¹. Sum of intensities, km/mol: level {sum(level['intensities']):.0f}, model"
        f" {sum(model['intensities']):.0f}, dynamics {area:.0f}. Dipole at the minimum, e Å: level"
        f" {level['dipole']:.4f}, model {model['dipole']:.4f}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
