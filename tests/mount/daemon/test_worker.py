"""The upkeep of a worker, which no request may block, and the start of a worker by the holder."""

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
from narmount.fuse.protocol import Agreed
from tests.mount.samples import base


@pytest.fixture
def handover(tmp_path: Path) -> Iterator[MountHandover]:
    """A mount whose kernel sends no requests."""
    with ExitStack() as stack:
        reading, writing = os.pipe()
        path_numbers, passthrough_files = os.memfd_create("path-numbers"), os.memfd_create("passthrough-files")
        for fd in (reading, writing, path_numbers, passthrough_files):
            stack.callback(os.close, fd)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        yield MountHandover(
            device=reading,
            listener=listener.detach(),
            path_numbers=path_numbers,
            passthrough_files=passthrough_files,
            generation=0,
            since=0.0,
            agreed=Agreed(minor=45, passthrough=False, resend=True),
            no_passthrough_reason="a test",
            target=tmp_path,
            control=tmp_path / "control",
            control_inode=0,
            metrics="",
        )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environ({"NAR_CACHE_URL": "http://127.0.0.1:1", "NAR_CACHE_DIR": str(tmp_path / "cache")})


def test_a_handover_reaches_the_next_process_unchanged(handover: MountHandover) -> None:
    assert MountHandover.from_json(handover.to_json()) == handover


def test_a_dead_holder_is_replaced_while_the_lookup_of_a_missing_name_hangs(
    handover: MountHandover, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer, taken_over = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(worker, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(missingnames, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(worker, "take_over", lambda handover: taken_over.set())
    holder = os.getppid()
    one = MountWorker(handover, settings, holder)

    def hang(name: str) -> None:
        asked.set()
        answer.wait()

    monkeypatch.setattr(one._paths, "look_for", hang)
    one._paths.missing_names.add(base("one"))
    one.start_upkeep()
    try:
        assert asked.wait(15)
        monkeypatch.setattr(os, "getppid", lambda: holder + 1)
        assert taken_over.wait(15)
        assert one.status()["holder_pid"] == holder, "not init, which is the parent now"
    finally:
        answer.set()
        one.close()


def test_a_name_is_announced_one_tick_after_it_appeared(
    handover: MountHandover, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, announced = MountWorker(handover, settings, os.getppid()), list[str]()
    monkeypatch.setattr(one._control, "announce", announced.extend)
    one._appeared.append("late")
    one._maintain()
    assert announced == []
    for _ in range(2):
        one._maintain()
        assert announced == ["late"]
    one.close()


def test_every_tick_sweeps_while_a_request_waits(
    handover: MountHandover, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request may need the disk space of evicted files."""
    one, sweeps = MountWorker(handover, settings, os.getppid()), list[int]()
    monkeypatch.setattr(one._files, "sweep", lambda: sweeps.append(one._ticks))
    for _ in range(2 * worker.SWEEP_TICKS):
        one._maintain()
    assert sweeps == [worker.SWEEP_TICKS, 2 * worker.SWEEP_TICKS]
    one._server._waiting[1] = ("path", "x")
    one._maintain()
    assert sweeps[2:] == [2 * worker.SWEEP_TICKS + 1]
    one.close()


def test_a_signal_just_before_the_first_worker_is_ready_ends_the_holder(
    handover: MountHandover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder has consumed the signal by then, and no process sends it again."""
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
    assert "error" in Holder(handover)._start()
    assert ended == [signal.SIGKILL]
