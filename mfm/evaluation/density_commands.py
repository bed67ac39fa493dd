"""``mfm density``: cube files and pictures of predicted densities."""

import argparse
import sys
from pathlib import Path

__all__ = ["register"]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", checkpoint: str) -> None:
    """Add the command to a command line; it sets `run` to a function of the parsed options.

    Parameters
    ----------
    checkpoint : str
        What may stand for a model, for the help.
    """
    parser = subparsers.add_parser(
        "density",
        help="electron density of a molecule: cube file, picture",
        description="Predict the electron density of a molecule and write it, what bonding has changed in it, or its"
        " electrostatic potential, as a cube file (atomic units) or as a picture of the plane nearest to all atoms"
        " (e/Å³ or V).",
        epilog="example: mfm density model.mfm water.xyz --cube water.cube --picture water.png --field deformation",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help=checkpoint)
    parser.add_argument("input", type=Path, metavar="IN", help="any file that ASE reads")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="which structure of the file (default 0)")
    parser.add_argument("--fidelity", help="level of theory; may be left out if only one has a density")
    parser.add_argument(
        "--field", default="density", metavar="NAME", help="density (default), deformation or potential"
    )
    parser.add_argument("--cube", type=Path, metavar="OUT.cube", help="write a cube file")
    parser.add_argument("--step", type=float, default=0.15, metavar="Å", help="of the cube's grid (default 0.15)")
    parser.add_argument("--margin", type=float, default=3.0, metavar="Å", help="around the atoms (default 3)")
    parser.add_argument("--picture", type=Path, metavar="OUT.png", help="draw a plane")
    parser.set_defaults(run=_density)


def _density(options: argparse.Namespace) -> int:
    import ase.io
    import torch

    from mfm.density.fields import FIELDS, field_at, write_field
    from mfm.evaluation.density_plots import plot_slice
    from mfm.graph import Structure
    from mfm.potential import Potential, check_fidelity
    from mfm.tracking import open_model

    if options.field not in FIELDS:
        raise ValueError(f"`--field` must be one of {', '.join(FIELDS)}, got `{options.field}`")
    if options.cube is None and options.picture is None:
        raise ValueError("give `--cube OUT.cube`, `--picture OUT.png` or both: nothing is written otherwise")
    if not options.input.exists():
        raise ValueError(f"cannot read structures: `{options.input}` does not exist")
    try:
        atoms = list(ase.io.read(options.input, index=":"))[options.index]
    except (ase.io.formats.UnknownFileTypeError, StopIteration, IndexError) as error:
        raise ValueError(f"cannot read structure {options.index} of `{options.input}`: {error}") from error
    potential = Potential(open_model(options.checkpoint), torch.device("cpu"))
    having = [name for name in potential.fidelities if "density" in potential.properties(name)]
    fidelity = options.fidelity or (having[0] if having else potential.fidelities[0])
    if options.fidelity is None and len(having) > 1:
        raise ValueError(f"the model has densities at several fidelities, name one with `--fidelity`: {having}")
    structure = Structure.from_ase(atoms)
    density = potential.density(structure, check_fidelity(fidelity, potential.fidelities))
    if options.cube is not None:
        grid = write_field(options.cube, structure, density, options.field, options.step, options.margin)
        sys.stdout.write(f"{options.cube}: {' x '.join(map(str, grid.shape))} points, {options.field}\n")
    if options.picture is not None:
        plot_slice(options.picture, structure, lambda points: field_at(points, density, options.field), options.field)
        sys.stdout.write(f"{options.picture}: {options.field} in the plane of {structure.formula}\n")
    return 0
