"""Search over the settings of a recipe; :mod:`mfm.tuning.study` is the only file that imports Optuna."""
