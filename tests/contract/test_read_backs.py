"""How often a model makes the processor wait for its device. Seen on the CPU, by the operations that would wait."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mfm.config import Config
from mfm.graph import Structure, build_graph, collate
from tests.contract.conftest import DTYPE, JOINS, make_model
from tests.contract.test_model_contract import ENERGIES, FORCES

WAITING = {"_local_scalar_dense", "nonzero", "bincount", "is_nonzero", "masked_select", "_unique2", "equal"}
"""Operations whose result, or its size, the processor needs."""


class ReadBacks(TorchDispatchMode):
    """Notes the operations after which the processor needs what the device holds."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or (name in ("index", "index_put_", "index_put") and has_mask(args[1])):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def has_mask(indices: Any) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)


def test_what_waits_is_noticed() -> None:
    values = torch.arange(3.0)
    with ReadBacks() as noted:
        values[values > 1].sum().item()
    assert noted.found[0] == "index"
    assert noted.found[-1] == "_local_scalar_dense"


@pytest.mark.parametrize("join", JOINS)
def test_a_local_model_does_not_wait(
    backbone: type[Config], join: str, molecule: Structure, crystal: Structure
) -> None:
    """On a device each wait would let the queue of work run dry.

    The width of the neighbour table is copied once, as a list, which is no operation and is not noticed here.
    """
    model = make_model(backbone, join).train()
    batch = collate([build_graph(structure, model.cutoff, dtype=DTYPE) for structure in (molecule, crystal)])
    with ReadBacks() as noted:
        outputs = model(batch, derivatives=FORCES)
        sum(outputs[name].square().sum() for name in [*ENERGIES, *FORCES]).backward()
    assert noted.found == []
