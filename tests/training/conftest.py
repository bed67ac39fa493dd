"""Fixtures of these tests."""

from tests.shared import _one_thread, morse_file

__all__ = ["_one_thread", "morse_file"]
