"""Make the environments of the peers: one folder each, torch first, so that all run on the torch that mfm runs on.

    python experiments/backbone_benchmark/setup_peers.py            # all of them
    python experiments/backbone_benchmark/setup_peers.py mace       # one

The only part of the benchmark that installs anything; nothing is fetched when it runs.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from workers import ENVIRONMENTS, PEERS, environment_python

_REQUIREMENTS = Path(__file__).parent / "requirements"
_PACKAGES = {"mace": "mace-torch", "nequip": "nequip", "schnetpack": "schnetpack", "torchmdnet": "torchmd-net"}


def install_peer(peer: str, environments: Path, torch_version: str) -> str:
    """Make the environment of a peer, or complete it.

    Parameters
    ----------
    environments : Path
        Folder that holds one environment per peer.
    torch_version : str
        Installed first and held by a constraint, so that a peer that asks for another fails instead of replacing it.

    Returns
    -------
    str
        What is installed: the peer and torch, with versions.

    Raises
    ------
    RuntimeError
        If pip cannot install the peer beside that torch.
    """
    python = environment_python(peer, environments)
    if not python.exists():
        venv.create(environments / peer, with_pip=True)
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "held.txt"
        held.write_text(f"torch=={torch_version}\n", encoding="utf-8")
        # setuptools below 81: some peers still import pkg_resources, which later releases do not have
        _pip(peer, python, "install", f"torch=={torch_version}", "numpy", "setuptools<81", "wheel")
        constrained = ("install", "--constraint", str(held), "--requirement")
        _pip(peer, python, *constrained, str(_REQUIREMENTS / f"{peer}.txt"))
        alone = _REQUIREMENTS / f"{peer}_alone.txt"
        if alone.exists():
            _pip(peer, python, *constrained, str(alone), "--no-deps")
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout
    return ", ".join(line for line in listed.splitlines() if line.split("==")[0] in ("torch", _PACKAGES[peer]))


def _pip(peer: str, python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"pip could not install `{peer}`: {' '.join(command)}\n{_errors(found.stderr)}")


def _errors(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("WARNING")]
    return "\n".join(lines[-20:])


def main() -> int:
    """Command line; the status is the number of peers that could not be installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"any of {', '.join(PEERS)}; all if not given")
    parser.add_argument("--envs", type=Path, default=ENVIRONMENTS, help="folder of the environments")
    parser.add_argument("--torch", default=importlib.metadata.version("torch").split("+")[0], help="version of torch")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.peers) - set(PEERS))
    if unknown:
        parser.error(f"peers are {', '.join(PEERS)}, got `{unknown[0]}`")
    failed = 0
    for peer in arguments.peers or PEERS:
        try:
            print(f"{peer}: {install_peer(peer, arguments.envs, arguments.torch)}", flush=True)
        except RuntimeError as error:
            failed += 1
            print(f"{peer}: {error}", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
