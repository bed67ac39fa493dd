"""Exponential moving average of a model's weights.

The average is what is validated, saved and handed to the next stage: it has the accuracy of a run with a much
lower final learning rate, at the cost of one multiply-add per weight and step.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Moving average of the trainable parameters of a model.

    The decay ramps up as (1 + step) / (10 + step), so that a short run is not dominated by its first weights.

    Parameters
    ----------
    model : nn.Module
    decay : float
        In [0, 1); the average looks back over about 1 / (1 − decay) steps.

    Raises
    ------
    ValueError
        If `decay` is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` of the weight average must lie in [0, 1), got {decay}")
        self.decay = decay
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._names = list(trainable)
        self._parameters: list[Tensor] = list(trainable.values())
        self._average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the present weights; `step` counts the optimiser steps done, from 1."""
        if self._average:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._average, self._parameters, 1 - decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the model's weights by their average."""
        if self._average:
            torch._foreach_copy_(self._parameters, self._average)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model carries the average; the trained weights come back bit by bit."""
        with torch.no_grad():
            kept = [parameter.detach().clone() for parameter in self._parameters]
        self.copy_to_model()
        try:
            yield
        finally:
            if kept:
                with torch.no_grad():
                    torch._foreach_copy_(self._parameters, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Average by parameter name."""
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises
        ------
        ValueError
            If the names or shapes are not those of the model.
        """
        if set(state) != set(self._names):
            odd = sorted(set(state) ^ set(self._names))
            raise ValueError(
                f"weight average must hold the {len(self._names)} trainable parameters of the model; it differs in"
                f" {', '.join(odd[:5])}; the state belongs to another run"
            )
        for name, mine in zip(self._names, self._average, strict=True):
            if state[name].shape != mine.shape:
                raise ValueError(
                    f"weight average of `{name}` must have shape {tuple(mine.shape)}, got {tuple(state[name].shape)}"
                )
            mine.copy_(state[name])
