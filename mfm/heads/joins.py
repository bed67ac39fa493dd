"""How tasks build on one another, and which combinations make no sense."""

from collections.abc import Mapping

from mfm.heads import HEADS, TaskConfig
from mfm.properties import parse_task

__all__ = ["CHARGES", "check_tasks", "electronic", "evaluation_order", "part_bases"]

CHARGES = "charges"
"""The part that the charge state gives."""


def check_tasks(tasks: Mapping[str, TaskConfig], degree: int) -> None:
    """Refuse tasks that cannot be built.

    Parameters
    ----------
    degree : int
        Highest degree of the backbone's equivariant features.

    Raises
    ------
    ValueError
        For a property without a head, a join that does not go, or a setting that does nothing.
    """
    if not tasks:
        raise ValueError("`tasks` must name at least one, such as `energy_dft: {}`")
    for name, task in tasks.items():
        prop = parse_task(name).property
        if task.anchor and task.conditioned:
            raise ValueError(f"task `{name}`: give `anchor` or `conditioned`, not both")
        if task.base is not None and task.base not in tasks:
            raise ValueError(f"task `{name}` builds on `{task.base}`, which is not among {', '.join(tasks)}")
        if task.base is not None and parse_task(task.base).property != prop:
            raise ValueError(f"task `{name}` must build on a task of the same property, got `{task.base}`")
        if task.conditioned and tasks[task.conditioned].base is not None:
            raise ValueError(f"task `{name}`: `conditioned` must name an independent task, not `{task.conditioned}`")
        if prop != "energy":
            _check_head(name, task, degree)
    evaluation_order(tasks)
    part_bases(tasks)


def _check_head(name: str, task: TaskConfig, degree: int) -> None:
    prop = parse_task(name).property
    if prop not in HEADS:
        raise ValueError(
            f"task `{name}`: heads exist for {', '.join(f'`{head}`' for head in ('energy', *HEADS))}; forces and stress"
            " follow from the energy where labelled"
        )
    if task.conditioned:
        raise ValueError(f"task `{name}`: `conditioned` is for energies; use `anchor`")
    for field in ("forces_weight", "stress_weight", "hessian_weight"):
        if getattr(task, field) != TaskConfig.model_fields[field].default:
            raise ValueError(f"task `{name}`: `{field}` is for energies; use `weight`")
    needed = max((part.degree for part in HEADS[prop].parts.values()), default=0)
    if degree < needed:
        raise ValueError(
            f"task `{name}` needs features of degree {needed}, got `backbone.equivariant_degree` {degree}; raise it"
        )


def evaluation_order(tasks: Mapping[str, TaskConfig]) -> list[str]:
    """Tasks, each after the one it builds on."""
    order: list[str] = []
    for name in tasks:
        chain: list[str] = []
        current: str | None = name
        while current is not None and current not in order:
            if current in chain:
                raise ValueError(f"tasks {' -> '.join([*chain, current])} build on one another in a circle")
            chain.append(current)
            current = tasks[current].base
        order.extend(reversed(chain))
    return order


def electronic(tasks: Mapping[str, TaskConfig]) -> dict[str, TaskConfig]:
    """The tasks that are no energies."""
    return {name: task for name, task in tasks.items() if parse_task(name).property in HEADS}


def part_bases(tasks: Mapping[str, TaskConfig]) -> dict[tuple[str, str], str | None]:
    """Fidelity and part → fidelity whose part it is added to, for every part that electronic tasks read.

    Raises
    ------
    ValueError
        If tasks of one fidelity share a part but are joined to different fidelities, or all to one another.
    """
    bases: dict[tuple[str, str], str | None] = {}
    users: dict[tuple[str, str], str] = {}
    for name, task in sorted(electronic(tasks).items(), key=lambda item: item[1].anchor is None):
        prop, fidelity = parse_task(name)
        head = HEADS[prop]
        base = None if task.anchor is None else parse_task(task.anchor).fidelity
        for part in (*head.parts, *((CHARGES,) if head.reads_charges else ())):
            key = fidelity, part
            known = bases.setdefault(key, base)
            user = users.setdefault(key, name)
            if known != base and not (base is None and f"{prop}_{known}" not in tasks):
                raise ValueError(
                    f"tasks `{user}` and `{name}` share the {part.replace('_', ' ')} of `{fidelity}` and must have"
                    f" their anchors at one fidelity, got {known} and {base or 'none'}"
                )
    for start in bases:
        chain = [start[0]]
        while (base := bases[chain[-1], start[1]]) is not None:
            if base in chain:
                raise ValueError(f"fidelities {' -> '.join([*chain, base])} take their {start[1]} in a circle")
            chain.append(base)
    return bases
