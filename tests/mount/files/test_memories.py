"""What a worker remembers: missing names, files that the kernel reads itself, closures to fetch, and log lines."""

import logging
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from narcore.errors import StoreUnavailable
from narmount.daemon.ratelimit import LogRateLimit
from narmount.files import missingnames, prefetch
from narmount.files import passthrough as module
from narmount.files.missingnames import MissingNames
from narmount.files.passthrough import PLAIN, PassthroughFiles
from narmount.files.prefetch import Prefetch
from tests.clock import Clock


def test_missing_names_are_looked_up_at_growing_intervals() -> None:
    clock = Clock(0.0)
    names = MissingNames(clock)
    names.add("a")
    times = []
    for second in range(0, 2000):
        clock.now = float(second)
        times += [second for _ in names.due()]
    assert times == [5, 15, 35, 75, 155, 315, 615, 915, 1215, 1515, 1815]
    clock.now = missingnames.GIVE_UP_SECONDS + 1
    assert names.due() == []
    assert len(names) == 0


def test_the_most_recent_missing_names_are_remembered() -> None:
    names = MissingNames()
    for number in range(missingnames.NAMES_MAX + 5):
        names.add(str(number))
    assert len(names) == missingnames.NAMES_MAX
    assert not names.discard("4")
    assert names.discard("5")
    assert not names.discard("5")


class Device:
    """Stands in for the kernel: gives each open file a new backing id."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.last = 0

    def open_backing(self, fuse: int, fd: int) -> int:
        self.last += 1
        self.open.add(self.last)
        return self.last

    def close_backing(self, fuse: int, number: int) -> None:
        self.open.remove(number)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(module, "device", device)
    return device


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("passthrough-files")
    yield fd
    os.close(fd)


def test_a_file_is_registered_once_and_stays_for_the_next_open(device: Device, fd: int) -> None:
    files = PassthroughFiles(-1, fd, 1)
    assert files.open(7) is None
    files.add(7, 0)
    files.add(7, 0)
    first, second = files.open(7), files.open(7)
    assert first is not None
    assert second is not None
    assert first[1] == second[1] == 1
    assert first[0] != second[0]
    for handle, _ in (first, second):
        files.release(7, handle)
    assert files.open(7) == (second[0] + 1, 1)


def test_a_file_read_through_the_worker_may_be_passed_through_after_it_was_closed(device: Device, fd: int) -> None:
    files = PassthroughFiles(-1, fd, 1)
    files.add(7, None)
    opened = files.open(7)
    assert opened is not None
    assert opened[1] == PLAIN
    files.release(7, opened[0])
    assert files.open(7) is None


def test_open_files_stay_and_idle_files_are_limited(device: Device, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_MAX", 2)
    files = PassthroughFiles(-1, fd, 1)
    files.add(1, 0)
    opened = files.open(1)
    assert opened is not None
    for node in range(2, 9):
        files.add(node, 0)
    assert device.open == {1, 7, 8}
    files.forget([1, 7, 99])  # node 1 has been opened again
    assert device.open == {1, 8}
    files.release(1, opened[0])
    files.forget([1])
    assert device.open == {8}


class Cached:
    def __init__(self) -> None:
        self.evicted = False
        self.touched = 0

    def is_evicted(self) -> bool:
        return self.evicted

    def touch(self) -> None:
        self.touched += 1


def test_an_evicted_file_is_closed_when_no_process_has_it_open(device: Device, fd: int) -> None:
    files, idle, used = PassthroughFiles(-1, fd, 1), Cached(), Cached()
    files.add(1, 0, idle)
    files.add(2, 0, used)
    files.add(3, None)
    opened = files.open(2)
    assert opened is not None
    for turn in range(1, 4):
        assert files.sweep() == []
        assert (idle.touched, used.touched, device.open) == (0, turn, {1, 2})
    idle.evicted = used.evicted = True
    files.sweep()
    assert device.open == {2}
    files.release(2, opened[0])
    files.sweep()
    assert device.open == set()
    assert (idle.touched, used.touched) == (0, 4)


def test_a_file_opened_and_closed_between_two_sweeps_counts_as_used(device: Device, fd: int) -> None:
    files, cached = PassthroughFiles(-1, fd, 1), Cached()
    files.add(1, 0, cached)
    opened = files.open(1)
    assert opened is not None
    files.release(1, opened[0])
    for _ in range(2):
        files.sweep()
        assert cached.touched == 1


def test_the_kernel_is_asked_to_forget_files_of_an_earlier_worker(device: Device, fd: int) -> None:
    before = PassthroughFiles(-1, fd, 1)
    before.add(1, 0, Cached())
    before.add(2, 0, Cached())
    after = PassthroughFiles(-1, fd, 2)
    after.add(3, 0, Cached())
    after.open(2)
    assert after.sweep() == [1]
    after.forget([1])
    assert after.sweep() == []
    assert device.open == {2, 3}


def test_the_next_worker_inherits_open_files(device: Device, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = PassthroughFiles(-1, fd, 1)
    before.add(1, 0)
    before.add(2, 0)
    opened = before.open(1)
    monkeypatch.setattr(module, "IDLE_MAX", 1)
    assert opened is not None
    after = PassthroughFiles(-1, fd, 2)
    assert len(after) == 2
    after.release(1, opened[0])  # opened under the earlier worker: how often is unknown
    again = after.open(1)
    assert again is not None
    assert again[1] == opened[1]
    for node in (3, 4, 5):
        after.add(node, 0)
    assert device.open >= {1, 2, 5}  # inherited files stay until the kernel forgets them
    after.forget([1, 2])
    assert device.open == {1, 5}


def test_the_file_of_records_stays_small(device: Device, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_MAX", 1000)
    files = PassthroughFiles(-1, fd, 1)
    for node in range(1000):
        files.add(node, 0)
        files.forget([node - 1])
        assert os.fstat(fd).st_size < 1200
    assert len(PassthroughFiles(-1, fd, 2)) == 1


def test_records_survive_a_kill_before_the_file_is_truncated(
    device: Device, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(fd: int, size: int) -> None:
        raise InterruptedError

    monkeypatch.setattr(module, "FILE_MAX", 320)
    monkeypatch.setattr(os, "ftruncate", killed)
    files = PassthroughFiles(-1, fd, 1)
    node = 0

    def add_nodes() -> None:
        nonlocal node
        while True:
            node += 1
            files.add(node, 0)
            files.forget([node - 3])

    with pytest.raises(InterruptedError):
        add_nodes()
    os.pwrite(fd, b"torn", os.fstat(fd).st_size)
    after = PassthroughFiles(-1, fd, 2)
    there = [each for each in range(1, node + 1) if after.open(each) is not None]
    assert there in ([node - 3, node - 2, node - 1, node], [node - 2, node - 1, node])
    monkeypatch.undo()
    after.forget([node])
    assert len(PassthroughFiles(-1, fd, 3)) == len(there)  # it is open, so it stays


@pytest.mark.parametrize("written", range(6))
def test_records_survive_a_kill_while_the_compacted_file_is_written(
    device: Device, fd: int, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """When a process is killed, the kernel may end its write anywhere."""
    files = PassthroughFiles(-1, fd, 1)
    for node in range(1, 6):
        files.add(node, 0)
    files.forget([2])
    for node in (1, 3, 1):  # a file that is used becomes the last to be removed
        files.open(node)
    whole = os.pwrite

    def killed(fd: int, data: bytes, offset: int) -> int:
        if offset == 0:
            whole(fd, data[: written * module.RECORD.size], offset)
            raise InterruptedError
        return whole(fd, data, offset)

    monkeypatch.setattr(module, "FILE_MAX", 0)
    monkeypatch.setattr(os, "pwrite", killed)
    with pytest.raises(InterruptedError):
        files.add(6, 0)
    monkeypatch.undo()
    after = PassthroughFiles(-1, fd, 2)
    assert {node: opened[1] for node in range(1, 8) if (opened := after.open(node))} == {1: 1, 3: 3, 4: 4, 5: 5, 6: 6}


CLOSURES = {"a": ("a", "b", "c"), "b": ("d",), "c": ("d", "e"), "d": (), "e": ("lost", "broken")}


def test_each_path_of_a_closure_is_fetched_once(caplog: pytest.LogCaptureFixture) -> None:
    fetched, done = [], threading.Event()

    def fetch(name: str) -> SimpleNamespace | None:
        fetched.append(name)
        if name == "broken":
            done.set()
            raise StoreUnavailable("down")
        return SimpleNamespace(narinfo=SimpleNamespace(references=CLOSURES[name])) if name in CLOSURES else None

    closures = Prefetch(fetch)  # type: ignore[arg-type]  # the part of a PathInfo that is used
    closures.add(["a", "c"])
    assert done.wait(10)
    while closures.pending:
        done.wait(0.01)
    assert sorted(fetched) == sorted([*CLOSURES, "lost", "broken"])
    assert {record.getMessage() for record in caplog.records} == {
        "lost: no store has it; not prefetching it",
        "broken: down; not prefetching it",
    }


def test_the_number_of_queued_paths_is_limited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prefetch, "PATHS_MAX", 2)
    go = threading.Event()

    def fetch(name: str) -> None:
        go.wait(10)

    closures = Prefetch(fetch)
    closures.add(["a", "b", "c"])
    assert "c: 2 store paths are waiting; not prefetching it" in caplog.text
    go.set()


def test_the_number_of_log_lines_is_limited() -> None:
    clock = Clock(0.0)
    limit = LogRateLimit(clock)

    def passes(text: str, level: int = logging.WARNING) -> str | None:
        record = logging.LogRecord("x", level, "", 0, "%s", (text,), None)
        return record.getMessage() if limit.filter(record) else None

    assert [passes(str(number)) for number in range(22)] == [*map(str, range(20)), None, None]
    assert passes("bad", logging.ERROR) == "bad (2 more messages were left out)"
    assert passes("again") is None
    clock.now = 10.0
    assert passes("later") == "later (1 more messages were left out)"
    assert passes("and on") == "and on"
