import json
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from mfm.tuning.journal import Journal


def _read(path: Path) -> list[int]:
    return [record["n"] for record in Journal(path).read_logs(0)]


def test_records_come_back_from_any_number_on(tmp_path):
    journal = Journal(tmp_path / "new" / "j")
    journal.append_logs([{"n": n} for n in range(5)])
    assert [record["n"] for record in journal.read_logs(3)] == [3, 4]
    journal.append_logs([{"n": 5}])
    assert [record["n"] for record in journal.read_logs(5)] == [5]
    assert [record["n"] for record in journal.read_logs(0)] == list(range(6))


def test_half_a_record_is_not_there_and_is_cut_off_by_the_next(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append_logs([{"n": 0}])
    with path.open("ab") as file:
        file.write(b'{"n": 1, "lost' + b"x" * 9000)  # a writer was killed here
    assert _read(path) == [0]
    Journal(path).append_logs([{"n": 2}])
    assert [record["n"] for record in journal.read_logs(0)] == [0, 2]
    path.write_bytes(b"torn")
    Journal(path).append_logs([{"n": 3}])
    assert _read(path) == [3]


def test_damage_is_named(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b'{"n":0}\nnonsense\n{"n":1}\n')
    with pytest.raises(ValueError, match=r"line 2 of the study's journal `.*j` is damaged .* another `--storage`"):
        _read(path)


def test_a_full_disk_leaves_whole_records_and_says_what_to_do(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append_logs([{"n": 0}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # no file may grow by more than a few bytes: the record fits in part, as on a disk that fills up
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write the study's journal; finished trials are kept: make room"):
            journal.append_logs([{"n": 1, "text": "x" * 100}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b'{"n":0}\n'
    journal.append_logs([{"n": 2}])
    assert _read(path) == [0, 2]


def _append(path: str, worker: int) -> None:
    journal = Journal(Path(path))
    for k in range(50):
        journal.append_logs([{"n": 50 * worker + k}])


def test_processes_write_beside_each_other(tmp_path):
    path = tmp_path / "j"
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_append, [str(path)] * 3, range(3)))
    assert sorted(_read(path)) == list(range(150))
    assert all(json.loads(line) for line in path.read_text().splitlines())
