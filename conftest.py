"""Loaded by pytest before anything of mfm.

The checker named by `--jaxtyping-packages` must exist by then. Tests run on one thread: threads that share so little
work mostly wait for each other (10 times slower on a busy machine), and the order of their sums changes the last bits.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import tests.typecheck  # noqa: F401
