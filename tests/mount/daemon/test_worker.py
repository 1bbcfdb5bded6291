"""What a worker does beside the requests, which none of them may hold up; and what the holder takes for its beginning."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from narcore.settings import Settings
from narmount.daemon import worker
from narmount.daemon.holder import Holder
from narmount.daemon.options import MountHandover
from narmount.daemon.worker import MountWorker
from narmount.files import missingnames
from tests.mount.samples import base


@pytest.fixture
def held(tmp_path: Path) -> Iterator[MountHandover]:
    """A mount whose kernel asks for nothing."""
    with ExitStack() as stack:
        reading, writing = os.pipe()
        names, backings = os.memfd_create("names"), os.memfd_create("backings")
        for fd in (reading, writing, names, backings):
            stack.callback(os.close, fd)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        yield MountHandover(
            device=reading,
            listener=listener.detach(),
            names=names,
            backings=backings,
            generation=0,
            since=0.0,
            minor=45,
            passthrough=False,
            resend=True,
            plain_reason="a test",
            target=tmp_path,
            control=tmp_path / "control",
            control_inode=0,
            metrics="",
        )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environ({"NAR_CACHE_URL": "http://127.0.0.1:1", "NAR_CACHE_DIR": str(tmp_path / "cache")})


def test_a_holder_that_dies_is_replaced_while_the_store_of_a_denied_name_hangs(
    held: MountHandover, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer, taken_over = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(worker, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(missingnames, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(worker, "take_over", lambda held: taken_over.set())
    holder = os.getppid()
    one = MountWorker(held, settings, holder)

    def hang(name: str) -> None:
        asked.set()
        answer.wait()

    monkeypatch.setattr(one._files, "look_for", hang)
    one._files.denied.add(base("one"))
    one.start_upkeep()
    try:
        assert asked.wait(15)
        monkeypatch.setattr(os, "getppid", lambda: holder + 1)
        assert taken_over.wait(15)
        assert one.status()["holder_pid"] == holder, "not init, which is our parent since"
    finally:
        answer.set()
        one.close()


def test_a_name_is_announced_when_the_kernel_has_had_a_tick_to_read_older_answers(
    held: MountHandover, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, announced = MountWorker(held, settings, os.getppid()), list[str]()
    monkeypatch.setattr(one._control, "announce", announced.extend)
    one._appeared.append("late")
    one._keep_up()
    assert announced == []
    for _ in range(2):
        one._keep_up()
        assert announced == ["late"]
    one.close()


def test_what_was_evicted_is_let_go_soon_where_somebody_waits(
    held: MountHandover, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be for its room on the disk."""
    one, sweeps = MountWorker(held, settings, os.getppid()), list[int]()
    monkeypatch.setattr(one._files, "sweep", lambda: sweeps.append(one._ticks))
    for _ in range(2 * worker.SWEEP_TICKS):
        one._keep_up()
    assert sweeps == [worker.SWEEP_TICKS, 2 * worker.SWEEP_TICKS]
    one._server._waiting[1] = ("path", "x")
    one._keep_up()
    assert sweeps[2:] == [2 * worker.SWEEP_TICKS + 1]
    one.close()


def test_a_holder_that_is_told_to_end_just_when_the_first_worker_is_ready_ends(
    held: MountHandover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal is taken by then: nobody would send it again."""
    ended: list[int] = []

    def begin(command: list[str], **_: Any) -> SimpleNamespace:
        ready = os.dup(int(command[-2]))

        def end(number: int) -> None:
            os.write(ready, b'{"ready": true}\n')
            os.close(ready)
            ended.append(number)

        return SimpleNamespace(send_signal=end)

    monkeypatch.setattr(subprocess, "Popen", begin)
    monkeypatch.setattr(signal, "sigtimedwait", lambda signals, seconds: signals[0])
    assert "error" in Holder(held)._start()
    assert ended == [signal.SIGKILL]
