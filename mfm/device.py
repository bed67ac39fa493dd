"""The device that a name stands for."""

import torch

__all__ = ["choose_device"]


def choose_device(name: str = "auto") -> torch.device:
    """Device of a name, if this machine has it.

    Parameters
    ----------
    name : str
        ``cpu``, ``cuda``, ``cuda:NUMBER``, or ``auto``: a CUDA device if there is one, else the CPU.

    Raises
    ------
    ValueError
        If it is none of these, or PyTorch does not find it.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"`device` must be auto, cpu, cuda or cuda:NUMBER, got `{name}`")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= count):
        raise ValueError(
            f"`device` `{name}` needs CUDA device {device.index or 0}, PyTorch {torch.__version__} finds"
            f" {count if torch.cuda.is_available() else 'none'}; use cpu, or a build of PyTorch for this machine's GPU"
        )
    return device
