"""The pages of MLflow end with the command that serves them."""

import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from mfm import tracking

_SERVER = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", deaf])
print(child.pid, flush=True)
time.sleep(60)
"""


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_server_that_is_stopped(number):
    code = (
        f"import sys\nfrom mfm.tracking import ui\nui._STOP_SECONDS = 0.2\n"
        f"sys.exit(ui.serve([sys.executable, '-c', {_SERVER!r}], 0))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    assert _runs(child)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 0
    end = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < end, "a process that the server started lives on"
        time.sleep(0.05)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} cannot be used \(Address already in use\); take another"):
            tracking.serve(["false"], port)
