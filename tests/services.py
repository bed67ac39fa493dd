"""Programs that slow tests start on this machine and end again: a browser, PostgreSQL, anything that serves HTTP."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["browser", "free_port", "postgres", "serving", "wait_until"]

_PATIENCE = 600.0
"""Seconds; a busy machine takes minutes to import MLflow."""


def free_port() -> int:
    """Port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, seconds: float = _PATIENCE) -> Any:
    """What a condition gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.2)
    return found


@contextlib.contextmanager
def serving(command: Sequence[str], address: str, log: Path, **options: Any) -> Iterator[None]:
    """Context in which a command serves an address; its whole session ends with it."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        wait_until(lambda: _answers(address) or process.poll() is not None, f"an answer of {address}")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def browser(width: int = 1400, height: int = 1000) -> Iterator[Any]:
    """Chromium without a window, driven by Selenium; skips the test where one of them is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium: pip install selenium")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    # root may not use the sandbox, containers have little shared memory
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
    driver.set_script_timeout(_PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Throw-away PostgreSQL server on the loopback interface; skips the test where there is none, or no driver.

    Yields
    ------
    str
        URL up to the name of the database, of which ``tracking`` and ``tuning`` exist.
    """
    pytest.importorskip("psycopg", reason="needs a driver for PostgreSQL: pip install 'psycopg[binary]'")
    found = shutil.which("initdb") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[::-1]), None)
    if found is None:
        pytest.skip("needs PostgreSQL; on Debian: apt-get install postgresql")
    programs = Path(found).resolve().parent
    # it refuses to run as root, and the user that Debian has for it cannot enter pytest's folders
    is_root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="mfm-postgres-"))
    if is_root:
        shutil.chown(folder, "postgres")
    port = free_port()

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        if is_root:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    data, log = str(folder / "data"), str(folder / "log")
    where = ["-h", "127.0.0.1", "-p", str(port), "-U", "mfm"]
    try:
        run("initdb", "-D", data, "-U", "mfm", "-A", "trust", "-E", "UTF8", "--no-sync")
        settings = f"-h 127.0.0.1 -p {port} -k {folder} -F"
        run("pg_ctl", "-D", data, "-l", log, "-o", settings, "-w", "-t", "120", "start")
        try:
            for name in ("tracking", "tuning"):
                run("createdb", *where, name)
            yield f"postgresql+psycopg://mfm@127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
