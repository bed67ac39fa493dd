"""Batches within an atom budget, fidelities in a stated mixture, the same for every rank and after every resume."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Sampler

__all__ = ["AtomBudgetBatchSampler", "mixing_shares"]

_N_TRIAL_EPOCHS = 8
"""Epochs planned to find a number of batches that later epochs can keep."""


def mixing_shares(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Shares of groups proportional to size^(1/T).

    Parameters
    ----------
    temperature : float
        1 is one concatenation; infinity is equal shares.

    Raises
    ------
    ValueError
        If the temperature is not at least 1.

    Examples
    --------
    >>> mixing_shares({"dft": 900, "ccsdt": 100}, 2.0)
    {'dft': 0.75, 'ccsdt': 0.25}
    """
    if not temperature >= 1.0:
        raise ValueError(f"`temperature` must be at least 1, got {temperature}")
    weights = {name: float(size) ** (1.0 / temperature) for name, size in sizes.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


class AtomBudgetBatchSampler(Sampler[list[int]]):
    """Batches of structures that fit a budget of atoms.

    One epoch passes every structure once, or, with a mixture, as many structures drawn from each group as its share
    asks for (a small group repeats, in whole passes before any structure comes again). A structure with labels at
    several fidelities belongs to the group of the rarest of them. The groups are spread evenly over the epoch, so
    every batch holds nearly the stated mixture.

    All ranks make the same plan and take every `world_size`-th batch of it. The number of batches is the same on
    every rank and in every epoch: what is missing is made up by cutting large batches in two, so no structure is
    dropped or repeated for it (but batches of one structure cannot be cut: then the first of them come again).

    Parameters
    ----------
    n_atoms : (n_structures,)
        Number of atoms of each structure.
    max_atoms : int
        Budget of a batch.
    max_structures : int, optional
        Most structures in a batch.
    groups : mapping of str to (n_structures,) bool, optional
        Fidelity to the structures that carry a label at it; every structure must carry one.
    ratios : mapping of str to float, optional
        Group to its weight in the mixture, such as ``{"dft": 3, "ccsdt": 1}``.
    temperature : float, optional
        Shares proportional to size^(1/T), instead of `ratios`.
    seed : int
        Of the order; with the epoch it determines the plan.
    rank, world_size : int
        This process, and how many there are.

    Raises
    ------
    ValueError
        If a structure exceeds the budget, a group or ratio does not fit, or there are fewer structures than ranks.
    """

    def __init__(  # noqa: PLR0913  (a sampler is its options)
        self,
        n_atoms: np.ndarray,
        max_atoms: int,
        *,
        max_structures: int | None = None,
        groups: Mapping[str, np.ndarray] | None = None,
        ratios: Mapping[str, float] | None = None,
        temperature: float | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._n_atoms = np.asarray(n_atoms, dtype=np.int64)
        self._max_atoms = max_atoms
        self._max_structures = max_structures or len(self._n_atoms)
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._check(max_structures)
        self._members = _disjoint_groups(groups, len(self._n_atoms))
        self._draws = _draws(self._members, ratios, temperature)
        self.epoch = 0
        """Epoch whose plan is in use."""
        self.position = 0
        """Batches of this rank that have been handed out in this epoch."""
        self.sampler = self  # Lightning calls `batch_sampler.sampler.set_epoch`
        planned = max(len(self._fill(self._order(epoch, 0))) for epoch in range(_N_TRIAL_EPOCHS))
        self._n_batches = -(-planned // world_size) * world_size
        self._plan: tuple[int, list[list[int]]] | None = None

    def __len__(self) -> int:
        return self._n_batches // self._world_size

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.plan()[self._rank :: self._world_size]
        while self.position < len(batches):
            self.position += 1
            yield batches[self.position - 1]
        self.position = 0

    def set_epoch(self, epoch: int) -> None:
        """Use the plan of an epoch, from its start unless it is the one in use."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def plan(self) -> list[list[int]]:
        """Batches of all ranks in this epoch, in order; rank r takes every `world_size`-th from r on."""
        if self._plan is None or self._plan[0] != self.epoch:
            attempt = 0
            batches = self._fill(self._order(self.epoch, attempt))
            while len(batches) > self._n_batches:
                attempt += 1
                batches = self._fill(self._order(self.epoch, attempt))
            self._plan = (self.epoch, _cut(batches, self._n_batches))
        return self._plan[1]

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """What an exact resume needs.

        Parameters
        ----------
        position : int, optional
            Batches that training has finished; a loader that fetches ahead has been handed more than that.
        """
        return {
            "epoch": self.epoch,
            "position": self.position if position is None else position,
            "fingerprint": self._fingerprint(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises
        ------
        ValueError
            If the data, budget, mixture, seed or number of ranks are not those of the saved run.
        """
        if state["fingerprint"] != self._fingerprint():
            raise ValueError(
                "the sampler must have the data, budget, mixture, seed and number of ranks of the run it resumes, got"
                f" fingerprint {self._fingerprint()} instead of {state['fingerprint']}"
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _check(self, max_structures: int | None) -> None:
        if max_structures is not None and max_structures < 1:
            raise ValueError(f"`max_structures` must be at least 1, got {max_structures}")
        if not 0 <= self._rank < self._world_size:
            raise ValueError(f"`rank` must lie in 0 to {self._world_size - 1}, got {self._rank}")
        if len(self._n_atoms) < self._world_size:
            raise ValueError(
                f"a sampler needs at least one structure for each of {self._world_size} ranks, got"
                f" {len(self._n_atoms)}; use fewer ranks"
            )
        if self._n_atoms.max() > self._max_atoms:
            raise ValueError(
                f"`max_atoms` must hold the largest structure: structure {int(self._n_atoms.argmax())} has"
                f" {self._n_atoms.max()} atoms, the budget is {self._max_atoms}; raise it or leave the structure out"
            )

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self._n_atoms.tobytes())
        for name, n in self._draws.items():
            digest.update(f"{name} {n}".encode() + self._members[name].tobytes())
        digest.update(f"{self._max_atoms} {self._max_structures} {self._seed} {self._world_size}".encode())
        return digest.hexdigest()[:16]

    def _order(self, epoch: int, attempt: int) -> np.ndarray:
        """Structures of an epoch in the order they are batched, groups spread evenly."""
        rng = np.random.default_rng((self._seed, epoch, attempt))
        drawn, keys = [], []
        for name, n in self._draws.items():
            members = self._members[name]
            n_passes = -(-n // len(members))
            drawn.append(np.concatenate([rng.permutation(members) for _ in range(n_passes)])[:n])
            keys.append((np.arange(n) + rng.random(n)) / n)
        return np.concatenate(drawn)[np.argsort(np.concatenate(keys), kind="stable")]

    def _fill(self, order: np.ndarray) -> list[list[int]]:
        batches: list[list[int]] = []
        atoms = self._max_atoms + 1
        for i, n in zip(order.tolist(), self._n_atoms[order].tolist(), strict=True):
            if atoms + n > self._max_atoms or len(batches[-1]) == self._max_structures:
                batches.append([])
                atoms = 0
            batches[-1].append(i)
            atoms += n
        return batches


def _disjoint_groups(groups: Mapping[str, np.ndarray] | None, n_structures: int) -> dict[str, np.ndarray]:
    """Members of each group; a structure of several groups goes to the smallest of them."""
    if groups is None:
        return {"all": np.arange(n_structures)}
    masks = {name: np.asarray(mask, dtype=bool) for name, mask in groups.items()}
    for name, mask in masks.items():
        if mask.shape != (n_structures,):
            raise ValueError(f"group `{name}` must be a mask of shape ({n_structures},), got {mask.shape}")
    free = np.ones(n_structures, dtype=bool)
    members = {}
    for name in sorted(masks, key=lambda name: int(masks[name].sum())):
        members[name] = np.flatnonzero(masks[name] & free)
        free &= ~masks[name]
    if free.any():
        raise ValueError(
            f"every structure must be in a group, structure {int(free.argmax())} and {int(free.sum()) - 1} more are in"
            f" none of {', '.join(masks)}; leave unlabelled structures out"
        )
    return {name: members[name] for name in masks}


def _draws(
    members: Mapping[str, np.ndarray], ratios: Mapping[str, float] | None, temperature: float | None
) -> dict[str, int]:
    """Structures to draw from each group in an epoch: as many in all as there are."""
    if ratios is not None and (ratios.keys() != members.keys() or min(ratios.values()) <= 0.0):
        raise ValueError(f"`ratios` must give a positive weight to each of {', '.join(members)}, got {dict(ratios)}")
    # a fidelity whose every structure also carries a rarer label has no structures left to draw
    sizes = {name: len(indices) for name, indices in members.items() if len(indices)}
    if ratios is None and temperature is None:
        return sizes
    if ratios is not None and temperature is not None:
        raise ValueError("give `ratios` or `temperature`, not both")
    if ratios is not None:
        weight = sum(ratios[name] for name in sizes)
        shares = {name: ratios[name] / weight for name in sizes}
    else:
        shares = mixing_shares(sizes, float(temperature or 1.0))
    total = sum(sizes.values())
    return {name: max(1, round(share * total)) for name, share in shares.items()}


def _cut(batches: list[list[int]], n_batches: int) -> list[list[int]]:
    """As many batches as asked for, by cutting those with most structures in two."""
    batches = list(batches)
    while len(batches) < n_batches:
        longest = max(range(len(batches)), key=lambda i: len(batches[i]))
        whole = batches[longest]
        if len(whole) == 1:
            return batches + batches[: n_batches - len(batches)]
        batches[longest : longest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return batches
