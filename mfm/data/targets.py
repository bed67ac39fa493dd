"""From labels as data sets have them to what a model learns."""

import numpy as np

from mfm.properties import PROPERTIES, parse_task

__all__ = ["label_target"]


def label_target(task: str, values: np.ndarray) -> np.ndarray:
    """Values of a label without their trace, if its property is learned so; energies lose their references elsewhere.

    Parameters
    ----------
    values : (…, *shape of the property)
    """
    if not PROPERTIES[parse_task(task).property].traceless:
        return values
    trace = np.trace(values, axis1=-2, axis2=-1)
    return np.asarray(values - trace[..., None, None] / 3.0 * np.eye(3))
