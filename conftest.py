"""Loaded by pytest before anything of mfm: the checker named by `--jaxtyping-packages` must exist by then."""

import tests.typecheck  # noqa: F401
