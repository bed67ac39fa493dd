"""Processes that train one model together: what they add up, and what they have to agree on."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor, distributed, nn

__all__ = ["ALONE", "Ranks", "launched_ranks"]


class Ranks(NamedTuple):
    """One process among those that train together; each sees its own batches, all have the same weights.

    Gradients are summed here and not by ``DistributedDataParallel``: that averages over ranks, expects every parameter
    to have a gradient on every rank, and lets Lightning communicate from within a signal handler.
    """

    rank: int = 0
    """Number of this process; 0 is the one that writes."""
    size: int = 1
    """How many processes there are. If more than one, ``torch.distributed`` is set up, in any case for the CPU."""
    local_rank: int = 0
    """Number of this process on its machine."""

    @property
    def writes(self) -> bool:
        """Whether this process validates, saves, records and evaluates."""
        return self.rank == 0

    @property
    def reduction(self) -> Callable[[Tensor], Tensor] | None:
        """:meth:`sum`, or None if there is nobody to ask."""
        return self.sum if self.size > 1 else None

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks; bit for bit the same on all of them."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total

    def largest(self, value: float) -> float:
        """Largest of the ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return float(found)

    def share(self, count: int) -> float:
        """Part of the ranks' counts that is this rank's."""
        if self.size == 1:
            return 1.0
        return count / float(self.sum(torch.tensor([count], dtype=torch.float64)))

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.largest(0.0)

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every rank the sum of the gradients; a parameter that no rank uses keeps none."""
        if self.size == 1:
            return
        users = self.sum(torch.tensor([float(parameter.grad is not None) for parameter in parameters]))
        used = [parameter for parameter, n in zip(parameters, users.tolist(), strict=True) if n]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in used if parameter.grad is not None]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = total.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(parts, gradients, strict=True)])

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """Give every rank the weights of rank 0; another processor may draw them with other last bits."""
        if self.size > 1:
            for value in (*model.parameters(), *model.buffers()):
                distributed.broadcast(value, src=0)


ALONE = Ranks()
"""A process that trains by itself."""


@contextlib.contextmanager
def launched_ranks() -> Iterator[Ranks]:
    """Context in which the processes that torchrun or srun started train together.

    Raises
    ------
    ValueError
        If this process was started by neither.
    """
    environment = _environment()
    rank, size = environment.global_rank(), environment.world_size()
    # the CPU always has its backend: ranks agree on when to stop without waiting for a GPU
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    address = f"tcp://{environment.main_address}:{environment.main_port}"
    distributed.init_process_group(backend, init_method=address, rank=rank, world_size=size)
    yield Ranks(rank, size, environment.local_rank())
    # after an error the others may wait for this rank: the end of the process tells them, closing in good order cannot
    distributed.destroy_process_group()


def _environment() -> ClusterEnvironment:
    if TorchElasticEnvironment.detect():  # first: torchrun also runs inside SLURM
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    raise ValueError(
        "`--distributed` trains one model with the processes of a launcher, and neither torchrun nor srun started this"
        " one; start it as docs/training.md says, or leave `--distributed` out"
    )
