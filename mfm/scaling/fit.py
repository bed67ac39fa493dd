"""Power laws with a floor, fitted to errors: L = L∞ + Σ_k a_k x_k^−γ_k.

With parameters and structures for x this is Eq. 2 of Hoffmann et al., NeurIPS 2022, arXiv:2203.15556; with compute
alone the usual law of a frontier. Fitted to logarithms, since seeds scatter by factors.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize

from mfm.study.report import CONFIDENCE, Interval

__all__ = ["Law", "fit_law", "intervals", "is_identifiable"]

_EXPONENTS = (0.0, 4.0)
_STARTS = (0.25, 0.7, 1.5)
_SMALLEST = 1e-6
"""Floor and terms, in units of the smallest error, below which they count as zero."""


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law."""

    floor: float
    """L∞, in the errors' unit."""
    sizes: tuple[float, ...]
    """a_k x_k^−γ_k at the reference."""
    exponents: tuple[float, ...]
    """γ_k."""
    reference: tuple[float, ...]
    """Geometric means of the x_k it was fitted at."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Errors (n,) at x (n, n_terms)."""
        scaled = np.asarray(x, dtype=float) / np.array(self.reference)
        return self.floor + (np.array(self.sizes) * scaled ** -np.array(self.exponents)).sum(axis=1)

    def amplitude(self, term: int) -> float:
        """a_k, in the errors' unit times that of x_k to the power γ_k."""
        return self.sizes[term] * self.reference[term] ** self.exponents[term]


def is_identifiable(x: np.ndarray) -> bool:
    """Whether a law can be told from its points: three values of each x, and more points than unknowns."""
    x = np.asarray(x, dtype=float)
    values = min(len(np.unique(column)) for column in x.T)
    return values >= 3 and len(x) > 1 + 2 * x.shape[1]


def fit_law(x: np.ndarray, errors: np.ndarray, start: Law | None = None) -> Law:
    """Law with the least squared logarithmic errors.

    Parameters
    ----------
    x : (n_points, n_terms)
        Positive.
    errors : (n_points,)
        Positive, in any unit.
    start : Law, optional
        Where to begin, in place of a grid of starts.

    Raises
    ------
    ValueError
        If the points do not tell a law, see :func:`is_identifiable`.
    """
    x, errors = np.asarray(x, dtype=float), np.asarray(errors, dtype=float)
    if not is_identifiable(x):
        raise ValueError(
            f"a law of {x.shape[1]} terms needs three values of each and more than {1 + 2 * x.shape[1]} points, got"
            f" {len(x)}"
        )
    reference = np.exp(np.log(x).mean(axis=0))
    logs, n_terms, least = np.log(x / reference), x.shape[1], float(errors.min())

    def terms(unknowns: np.ndarray) -> np.ndarray:
        return np.exp(unknowns[1 : 1 + n_terms] - unknowns[1 + n_terms :] * logs)

    def residuals(unknowns: np.ndarray) -> np.ndarray:
        return np.log(np.exp(unknowns[0]) + terms(unknowns).sum(axis=1)) - np.log(errors)

    def slopes(unknowns: np.ndarray) -> np.ndarray:
        floor, found = np.full((len(x), 1), np.exp(unknowns[0])), terms(unknowns)
        return np.hstack([floor, found, -logs * found]) / (floor + found.sum(axis=1, keepdims=True))

    low = [np.log(_SMALLEST * least)] * (1 + n_terms) + [_EXPONENTS[0]] * n_terms
    high = [np.log(least)] + [np.log(1e3 * errors.max())] * n_terms + [_EXPONENTS[1]] * n_terms
    best = None
    for guess in _guesses(errors, n_terms, start):
        guess = np.clip(guess, np.array(low) + 1e-9, np.array(high) - 1e-9)
        found = optimize.least_squares(residuals, guess, slopes, bounds=(low, high))
        best = found if best is None or found.cost < best.cost else best
    assert best is not None
    floor, sizes, exponents = np.exp(best.x[0]), np.exp(best.x[1 : 1 + n_terms]), best.x[1 + n_terms :]
    return Law(float(floor), tuple(sizes.tolist()), tuple(exponents.tolist()), tuple(reference.tolist()))


def _guesses(errors: np.ndarray, n_terms: int, start: Law | None) -> list[np.ndarray]:
    if start is not None:
        return [np.array([np.log(start.floor), *np.log(start.sizes), *start.exponents])]
    least, middle = float(errors.min()), float(np.exp(np.log(errors).mean()))
    return [
        np.array([np.log(share * least), *[np.log(middle / n_terms)] * n_terms, *exponents])
        for share in (0.1, 0.8)
        for exponents in itertools.product(_STARTS, repeat=n_terms)
    ]


def intervals(
    x: np.ndarray,
    errors: Sequence[Sequence[float]],
    quantities: Callable[[Law], Sequence[float]],
    resamples: int = 200,
    seed: int = 0,
) -> tuple[Law, list[Interval]]:
    """Law of the geometric means over seeds, and what follows from it with bootstrap intervals over seeds.

    Parameters
    ----------
    x : (n_points, n_terms)
    errors : sequence of sequences of float
        Errors of the seeds at each point, which are drawn anew, each point for itself. With one seed somewhere there
        are no intervals.
    quantities : callable
        Numbers wanted of a law.
    resamples : int
    seed : int
        Of the draws.
    """
    law = fit_law(x, np.array([np.exp(np.mean(np.log(values))) for values in errors]))
    values = np.array(quantities(law))
    if min(map(len, errors)) < 2:
        return law, [Interval(float(value), np.nan, np.nan) for value in values]
    rng, logarithms = np.random.default_rng(seed), [np.log(np.asarray(found, dtype=float)) for found in errors]
    drawn = []
    for _ in range(resamples):
        # means of draws from n seeds scatter by (n − 1)/n of the variance that means over n new seeds have
        means = [
            found.mean()
            + (rng.choice(found, len(found)).mean() - found.mean()) * (len(found) / (len(found) - 1)) ** 0.5
            for found in logarithms
        ]
        drawn.append(quantities(fit_law(x, np.exp(means), law)))
    low, high = np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], axis=0)
    return law, [Interval(*map(float, row)) for row in zip(values, low, high, strict=True)]
