"""Do the tasks of a stage pull the shared weights the same way? Cosines between their gradients.

A negative cosine says that a step for one task undoes what another gained (Yu et al., NeurIPS 2020, arXiv:2001.06782).
Measured on the last block that the tasks share, of every few batches: gradients of the blocks before it pass through
it.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from mfm.losses import LossTerm, combine
from mfm.model import NOISE
from mfm.properties import parse_task, task_name

__all__ = ["GradientCosines", "task_of"]


def task_of(term: str) -> str:
    """Task that a term of the loss belongs to; forces, stress and Hessian products belong to the energy.

    Examples
    --------
    >>> task_of("forces_dft"), task_of("dipole_dft")
    ('energy_dft', 'dipole_dft')
    """
    if term == NOISE:
        return term
    prop, fidelity = parse_task(term)
    return task_name("energy", fidelity) if prop in ("forces", "stress", "hessian_product") else term


class GradientCosines:
    """Cosines between the gradients that the tasks of a batch give to some parameters.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        Shared by the tasks.
    every : int
        Optimiser steps from one measurement to the next.
    reduction : callable, optional
        Sums a tensor over ranks; every rank measures at the same steps.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        every: int,
        reduction: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._parameters, self._every, self._reduction = list(parameters), every, reduction

    def is_due(self, step: int) -> bool:
        """Whether a step is one to measure at."""
        return step % self._every == 0

    def measure(self, terms: Mapping[str, LossTerm]) -> dict[str, tuple[Tensor, Tensor]]:
        """Cosine of each pair of tasks, before the backward pass of the loss, whose graph is kept.

        Returns
        -------
        dict
            ``gradient_cosine/ONE/OTHER`` → the cosine and 1, or two zeros where a task has no label in the batch: what
            averages over batches are made of.
        """
        groups: dict[str, dict[str, LossTerm]] = {}
        for name, term in terms.items():
            groups.setdefault(task_of(name), {})[name] = term
        if len(groups) < 2:
            return {}
        gradients = torch.stack([self._gradient(group) for group in groups.values()])
        if self._reduction is not None:
            gradients = self._reduction(gradients)
        norms = torch.linalg.vector_norm(gradients, dim=1)
        found = {}
        for (i, one), (j, other) in combinations(enumerate(groups), 2):
            size = norms[i] * norms[j]
            is_known = (size > 0).to(size.dtype)
            cosine = torch.dot(gradients[i], gradients[j]) / size.clamp(min=torch.finfo(size.dtype).tiny)
            found[f"gradient_cosine/{one}/{other}"] = cosine * is_known, is_known
        return found

    def _gradient(self, terms: Mapping[str, LossTerm]) -> Tensor:
        loss = combine(terms, self._reduction)
        # a task that does not depend on any of the parameters, or has no label in the batch, has a zero gradient
        if not loss.requires_grad:
            return torch.cat([torch.zeros_like(parameter).flatten() for parameter in self._parameters]).double()
        gradients = torch.autograd.grad(
            loss, self._parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([gradient.flatten() for gradient in gradients]).double()
