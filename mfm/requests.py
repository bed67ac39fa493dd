"""What a model may be asked for, and what it says if it has it not."""

from collections.abc import Collection, Mapping, Sequence

from mfm.derivatives import DERIVATIVES
from mfm.properties import PROPERTIES, parse_task

__all__ = ["energies_needed", "refuse_isolated", "split_quantities"]


def energies_needed(tasks: Sequence[str], derivatives: Sequence[str], known: Collection[str]) -> list[str]:
    """Energies among tasks and those behind derivatives.

    Parameters
    ----------
    known : collection of str
        Tasks of the model.

    Raises
    ------
    ValueError
        If the model does not have one of them, or a derivative is none.
    """
    needed = list(tasks)
    for name in derivatives:
        prop, fidelity = parse_task(name)
        if prop not in DERIVATIVES:
            raise ValueError(f"`derivatives` may be {', '.join(DERIVATIVES)} of a fidelity, got `{name}`")
        needed.append(f"energy_{fidelity}")
    unknown = [name for name in needed if name not in known]
    if unknown:
        raise ValueError(f"this model has tasks {', '.join(known)}, got `{unknown[0]}`")
    return [name for name in needed if parse_task(name).property == "energy"]


def refuse_isolated(names: Sequence[str]) -> None:
    """Refuse what only molecules have.

    Raises
    ------
    ValueError
        If one of the tasks is such.
    """
    for name in names:
        if PROPERTIES[parse_task(name).property].isolated:
            raise ValueError(
                f"`{name}` of a periodic structure depends on the choice of its cell; ask for it only where `pbc`"
                " is False"
            )


def split_quantities(names: Sequence[str], having: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, str]]:
    """Quantity and fidelity of each name, such as ``charges_dft``.

    Parameters
    ----------
    having : mapping of str to sequence of str
        Fidelity → its quantities, see :meth:`mfm.model.MFMModel.properties`.

    Raises
    ------
    ValueError
        If the model does not have one of them.
    """
    known = {f"{kind}_{fidelity}": (kind, fidelity) for fidelity, kinds in having.items() for kind in kinds}
    for name in names:
        if name not in known:
            raise ValueError(
                f"this model has quantities {', '.join(known) or 'none'}, got `{name}`; charges and what"
                " follows from them come with `long_range` or tasks of their own"
            )
    return {name: known[name] for name in names}
