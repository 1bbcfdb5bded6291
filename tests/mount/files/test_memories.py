"""What a mount remembers: names that were denied, files that the kernel reads by itself, closures to be fetched."""

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


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_denied_names_are_asked_for_less_and_less_often() -> None:
    clock = Clock()
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


def test_the_last_denied_names_are_remembered() -> None:
    names = MissingNames()
    for number in range(missingnames.NAMES_MAX + 5):
        names.add(str(number))
    assert len(names) == missingnames.NAMES_MAX
    assert not names.discard("4")
    assert names.discard("5")
    assert not names.discard("5")


class Device:
    """Of the kernel's part: numbers of files, each of which is used once."""

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
    fd = os.memfd_create("backings")
    yield fd
    os.close(fd)


def test_a_file_is_registered_once_and_kept_for_the_next_open(device: Device, fd: int) -> None:
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


def test_a_file_read_through_us_may_be_passed_through_when_it_was_closed(device: Device, fd: int) -> None:
    files = PassthroughFiles(-1, fd, 1)
    files.add(7, None)
    opened = files.open(7)
    assert opened is not None
    assert opened[1] == PLAIN
    files.release(7, opened[0])
    assert files.open(7) is None


def test_what_is_open_stays_and_what_is_idle_goes(device: Device, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_MAX", 2)
    files = PassthroughFiles(-1, fd, 1)
    files.add(1, 0)
    opened = files.open(1)
    assert opened is not None
    for node in range(2, 9):
        files.add(node, 0)
    assert device.open == {1, 7, 8}
    files.forget([1, 7, 99])  # the first is open again, whatever the kernel has forgotten
    assert device.open == {1, 8}
    files.release(1, opened[0])
    files.forget([1])
    assert device.open == {8}


class Kept:
    def __init__(self) -> None:
        self.evicted = False
        self.touched = 0

    def is_evicted(self) -> bool:
        return self.evicted

    def touch(self) -> None:
        self.touched += 1


def test_what_was_evicted_goes_when_nobody_has_it_open(device: Device, fd: int) -> None:
    files, idle, used = PassthroughFiles(-1, fd, 1), Kept(), Kept()
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


def test_what_was_opened_and_closed_between_two_sweeps_was_used(device: Device, fd: int) -> None:
    files, kept = PassthroughFiles(-1, fd, 1), Kept()
    files.add(1, 0, kept)
    opened = files.open(1)
    assert opened is not None
    files.release(1, opened[0])
    for _ in range(2):
        files.sweep()
        assert kept.touched == 1


def test_what_an_earlier_worker_has_left_is_for_the_kernel_to_forget(device: Device, fd: int) -> None:
    before = PassthroughFiles(-1, fd, 1)
    before.add(1, 0, Kept())
    before.add(2, 0, Kept())
    after = PassthroughFiles(-1, fd, 2)
    after.add(3, 0, Kept())
    after.open(2)
    assert after.sweep() == [1]
    after.forget([1])
    assert after.sweep() == []
    assert device.open == {2, 3}


def test_the_next_worker_takes_over(device: Device, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = PassthroughFiles(-1, fd, 1)
    before.add(1, 0)
    before.add(2, 0)
    opened = before.open(1)
    monkeypatch.setattr(module, "IDLE_MAX", 1)
    assert opened is not None
    after = PassthroughFiles(-1, fd, 2)
    assert len(after) == 2
    after.release(1, opened[0])  # opened by the other: how often is not known
    again = after.open(1)
    assert again is not None
    assert again[1] == opened[1]
    for node in (3, 4, 5):
        after.add(node, 0)
    assert device.open >= {1, 2, 5}  # what was there before stays until the kernel forgets it
    after.forget([1, 2])
    assert device.open == {1, 5}


def test_the_file_to_remember_by_stays_small(device: Device, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FILE_MAX", 1000)
    files = PassthroughFiles(-1, fd, 1)
    for node in range(1000):
        files.add(node, 0)
        files.forget([node - 1])
        assert os.fstat(fd).st_size < 1200
    assert len(PassthroughFiles(-1, fd, 2)) == 1


def test_killed_while_the_file_is_made_shorter(device: Device, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(fd: int, size: int) -> None:
        raise InterruptedError

    monkeypatch.setattr(module, "_FILE_MAX", 320)
    monkeypatch.setattr(os, "ftruncate", killed)
    files = PassthroughFiles(-1, fd, 1)
    node = 0

    def use_more_and_more() -> None:
        nonlocal node
        while True:
            node += 1
            files.add(node, 0)
            files.forget([node - 3])

    with pytest.raises(InterruptedError):
        use_more_and_more()
    os.pwrite(fd, b"torn", os.fstat(fd).st_size)
    after = PassthroughFiles(-1, fd, 2)
    there = [each for each in range(1, node + 1) if after.open(each) is not None]
    assert there in ([node - 3, node - 2, node - 1, node], [node - 2, node - 1, node])
    monkeypatch.undo()
    after.forget([node])
    assert len(PassthroughFiles(-1, fd, 3)) == len(there)  # it is open


@pytest.mark.parametrize("written", range(6))
def test_killed_while_the_shorter_file_is_written(
    device: Device, fd: int, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """The kernel may end a write anywhere when the process is killed."""
    files = PassthroughFiles(-1, fd, 1)
    for node in range(1, 6):
        files.add(node, 0)
    files.forget([2])
    for node in (1, 3, 1):  # used: in the order of their use, they go to the end
        files.open(node)
    whole = os.pwrite

    def killed(fd: int, data: bytes, offset: int) -> int:
        if offset == 0:
            whole(fd, data[: written * module._RECORD.size], offset)
            raise InterruptedError
        return whole(fd, data, offset)

    monkeypatch.setattr(module, "_FILE_MAX", 0)
    monkeypatch.setattr(os, "pwrite", killed)
    with pytest.raises(InterruptedError):
        files.add(6, 0)
    monkeypatch.undo()
    after = PassthroughFiles(-1, fd, 2)
    assert {node: opened[1] for node in range(1, 8) if (opened := after.open(node))} == {1: 1, 3: 3, 4: 4, 5: 5, 6: 6}


CLOSURES = {"a": ("a", "b", "c"), "b": ("d",), "c": ("d", "e"), "d": (), "e": ("lost", "broken")}


def test_a_closure_is_fetched_once(caplog: pytest.LogCaptureFixture) -> None:
    fetched, done = [], threading.Event()

    def fetch(name: str) -> SimpleNamespace | None:
        fetched.append(name)
        if name == "broken":
            done.set()
            raise StoreUnavailable("down")
        return SimpleNamespace(narinfo=SimpleNamespace(references=CLOSURES[name])) if name in CLOSURES else None

    closures = Prefetch(fetch)  # type: ignore[arg-type]  # a path info's part that is looked at
    closures.add(["a", "c"])
    assert done.wait(10)
    while closures.pending:
        done.wait(0.01)
    assert sorted(fetched) == sorted([*CLOSURES, "lost", "broken"])
    assert {record.getMessage() for record in caplog.records} == {
        "lost could not be fetched ahead: no store has it",
        "broken could not be fetched ahead: down",
    }


def test_closures_are_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(prefetch, "PATHS_MAX", 2)
    go = threading.Event()

    def fetch(name: str) -> None:
        go.wait(10)

    closures = Prefetch(fetch)
    closures.add(["a", "b", "c"])
    assert "c is not fetched ahead" in caplog.text
    go.set()


def test_a_log_that_nobody_can_fill() -> None:
    clock = Clock()
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
