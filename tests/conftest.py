"""What every test leaves as it found it."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo the logging that a script sets up for its process, here the process of all later tests."""
    loggers = [logging.getLogger(name) for name in (None, "mfm")]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Runs without drawing, which takes longer than the training of small models; files are there, but empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfm.evaluation.evaluate.plot_parity", lambda *args, **kwargs: args[1].touch())
        patch.setattr("mfm.training.run.plot_learning_curves", lambda *args, **kwargs: args[1].touch())
        yield
