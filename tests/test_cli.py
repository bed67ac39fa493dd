"""The command line as a function that others may call."""

import logging

import pytest

from mfm.cli import main


@pytest.mark.parametrize("arguments", [["data", "list"], ["data", "info", "nowhere.h5"]])
def test_the_caller_keeps_the_logging_of_their_own(arguments, capsys):
    logger = logging.getLogger("mfm")
    before = list(logger.handlers), logger.level, logger.propagate
    status = main(arguments)
    assert (logger.handlers, logger.level, logger.propagate) == before
    assert status == (0 if arguments == ["data", "list"] else 2), capsys.readouterr().err
