import shutil
from pathlib import Path

import pytest

from mfm import tracking
from mfm.tracking.run import _SenderProcess
from mfm.tracking.sending import Sender
from mfm.tracking.store import StoreError


class SenderInThisProcess(_SenderProcess):
    """Sends the journal when the run ends, as the process does that takes seconds to start."""

    def __init__(self, folder: Path, directory: str | Path) -> None:
        self.sender = Sender(folder, tracking.locate(directory))

    def check(self) -> None:
        """Nothing: no other process has anything to tell."""

    def finish(self) -> None:
        try:
            self.sender.send()
        except StoreError as error:
            self.sender.fail(error)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Database with its tables made, which takes seconds; tests copy it."""
    folder = tmp_path_factory.mktemp("template") / "mlruns"
    tracking.open_store(tracking.locate(folder))
    return folder


@pytest.fixture
def directory(empty_store: Path, tmp_path: Path) -> Path:
    """Folder of runs, without a run."""
    return Path(shutil.copytree(empty_store, tmp_path / "mlruns"))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfm.tracking.run._SenderProcess", SenderInThisProcess)
