"""What the holder of a mount hands over to its worker, and the start of a worker by the holder."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from narcore.settings import Settings
from narmount.daemon.holder import TROUBLE, Holder
from narmount.daemon.options import MountHandover
from narmount.daemon.worker import MountWorker
from narmount.fuse.protocol import Agreed


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


def test_the_status_names_the_holder_that_started_the_worker(handover: MountHandover, settings: Settings) -> None:
    """Not the parent process, which is init if the holder has died."""
    worker = MountWorker(handover, settings, os.getppid() + 1)
    assert worker.status()["holder_pid"] == os.getppid() + 1
    worker.close()


def test_a_signal_just_before_the_first_worker_is_ready_ends_the_holder(
    handover: MountHandover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder has consumed the signal by then, and no process sends it again."""
    ended: list[int] = []
    start = subprocess.Popen

    def begin(command: list[str], **options: Any) -> Any:
        if command[0] != sys.executable:  # fusermount3
            return start(command, **options)
        ready = os.dup(int(command[-2]))

        def end(number: int) -> None:
            os.write(ready, b'{"ready": true}\n')
            os.close(ready)
            ended.append(number)

        return SimpleNamespace(send_signal=end)

    monkeypatch.setattr(subprocess, "Popen", begin)
    monkeypatch.setattr(signal, "sigtimedwait", lambda signals, seconds: signals[0])
    assert Holder(handover).run() == TROUBLE
    assert ended == [signal.SIGKILL]
