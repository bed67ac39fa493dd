"""Energy of a structure at one fidelity, as a sum over atoms."""

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["EnergyHead"]


class EnergyHead(nn.Module):
    """Atomic energies from invariant features.

    Without a bias anywhere: features of an atom without neighbours are zero, and so is its energy, which makes an
    isolated atom equal its reference.

    Parameters
    ----------
    n_scalars : int
        Channels of the features.
    n_hidden : int
        Width of the hidden layer.
    starts_at_zero : bool
        Whether the output is zero before training; for a head that corrects another one.
    """

    def __init__(self, n_scalars: int, n_hidden: int, starts_at_zero: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(n_scalars, n_hidden, bias=False)
        self.linear = nn.Linear(n_scalars, 1, bias=False)
        self.output = nn.Linear(n_hidden, 1, bias=False)
        if starts_at_zero:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.output.weight)

    def forward(self, scalars: Tensor) -> Tensor:
        """(n_atoms, n_scalars) → (n_atoms,), in units of the model's scale."""
        nonlinear = self.output(functional.silu(self.hidden(scalars)))
        return (self.linear(scalars) + nonlinear).squeeze(1)
