"""The upkeep of a mount, which no request and no store may block."""

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from narmount.daemon.upkeep import SWEEP_TICKS, Appeared, Upkeep
from narmount.files.missingnames import MissingNames


class Parts:
    """What an upkeep uses, in place of the parts of a mount. Records what the upkeep does."""

    def __init__(self) -> None:
        self.server = SimpleNamespace(waiting=0)
        self.sweeps = 0
        self.announced: list[str] = []
        self.looked_up: list[str] = []
        self.now = 0.0
        self.missing_names = MissingNames(lambda: self.now)
        self.appeared = Appeared()
        self.replaced = threading.Event()

    def upkeep(self, holder: int = 0, **others: Any) -> Upkeep:
        parts: dict[str, Any] = {
            "paths": SimpleNamespace(missing_names=self.missing_names, look_for=self.looked_up.append),
            "files": SimpleNamespace(sweep=self.sweep),
            "server": self.server,
            "control": SimpleNamespace(announce=self.announced.extend),
        }
        return Upkeep(holder=holder, replace_holder=self.replaced.set, appeared=self.appeared, **(parts | others))

    def sweep(self) -> None:
        self.sweeps += 1


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_a_dead_holder_is_replaced_while_the_lookup_of_a_missing_name_hangs(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer, holder = threading.Event(), threading.Event(), os.getppid()

    def hang(name: str) -> None:
        asked.set()
        answer.wait()

    paths = SimpleNamespace(missing_names=parts.missing_names, look_for=hang)
    parts.missing_names.add("one")
    parts.now = 3600.0
    upkeep = parts.upkeep(holder, paths=paths, tick=0.001)
    upkeep.start()
    try:
        assert asked.wait(60)
        assert not parts.replaced.is_set()
        monkeypatch.setattr(os, "getppid", lambda: holder + 1)
        assert parts.replaced.wait(60)
    finally:
        answer.set()
        upkeep.close()


def test_a_failed_task_is_logged_and_repeated(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    repeated = threading.Event()

    def sweep() -> None:
        parts.sweep()
        if parts.sweeps == 2:
            repeated.set()
        raise OSError("the disk fails")

    parts.server.waiting = 1
    upkeep = parts.upkeep(os.getppid(), files=SimpleNamespace(sweep=sweep), tick=0.001)
    upkeep.start()
    assert repeated.wait(60)
    upkeep.close()
    assert "upkeep of the mount failed; trying again" in caplog.text


def test_a_name_is_announced_one_tick_after_it_appeared(parts: Parts) -> None:
    upkeep = parts.upkeep()
    parts.appeared.add("late")
    upkeep.maintain()
    assert parts.announced == []
    for _ in range(2):
        upkeep.maintain()
        assert parts.announced == ["late"]


def test_every_tick_sweeps_while_a_request_waits(parts: Parts) -> None:
    """The request may need the disk space of evicted files."""
    upkeep, swept = parts.upkeep(), list[int]()
    for _ in range(2 * SWEEP_TICKS):
        upkeep.maintain()
        swept.append(parts.sweeps)
    assert swept == [0] * (SWEEP_TICKS - 1) + [1] * SWEEP_TICKS + [2]
    parts.server.waiting = 1
    upkeep.maintain()
    assert parts.sweeps == 3
