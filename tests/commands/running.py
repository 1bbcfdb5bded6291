"""Runs commands: in the process of the test, in a process of their own, and on a terminal."""

import os
import pty
import select
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from narserve.program import run

PROGRAM = Path(sys.executable).parent / "nar-serve"
SECONDS = 60


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a command. ``code`` is the exit code, or the negative signal number."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode("utf-8", "surrogateescape").splitlines()


class InProcess:
    """Runs commands in this process, which is fast and covered by coverage. ``use`` sets stores and other settings."""

    def __init__(self, capture: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capture = capture
        self._monkeypatch = monkeypatch

    def use(self, *stores: Path | str, **settings: str) -> None:
        if stores:
            urls = (store.as_uri() if isinstance(store, Path) else store for store in stores)
            self._monkeypatch.setenv("NAR_CACHE_URL", " ".join(urls))
        for name, value in settings.items():
            self._monkeypatch.setenv(name, value)

    def __call__(self, *arguments: str | Path) -> Done:
        self._capture.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = self._capture.readouterr()
        return Done(code, out, err.decode("utf-8", "backslashreplace"))

    def ok(self, *arguments: str | Path) -> Done:
        """Run a command that must succeed, with no output on standard error."""
        done = self(*arguments)
        assert (done.code, done.err) == (0, ""), done
        return done


def stored(directory: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files of a binary cache into a directory. Returns the directory."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NAR_", "NIX_", "PYTHON"))}
    # With PYTHONDEVMODE, a warning about an unclosed file or connection appears on standard error.
    return inherited | {"PYTHONDEVMODE": "1"} | dict(settings)


def start(*arguments: str, settings: Mapping[str, str], cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the program, with pipes for its output."""
    return subprocess.Popen(
        [PROGRAM, *arguments],
        env=environment(settings),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def program(*arguments: str, settings: Mapping[str, str], cwd: Path | None = None) -> Done:
    with start(*arguments, settings=settings, cwd=cwd) as process:
        out, err = process.communicate(timeout=SECONDS)
    return Done(process.returncode, out, err.decode("utf-8", "backslashreplace"))


def at_terminal(*arguments: str, settings: Mapping[str, str], cwd: Path | None = None, typed: bytes = b"") -> Done:
    """Run the program with all three streams on a terminal, and type ``typed``. ``out`` contains everything on the screen."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [PROGRAM, *arguments],
            env=environment({"TERM": "xterm"} | dict(settings)),
            cwd=cwd,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        os.write(ours, typed)
        shown = b"".join(iter(lambda: _read(ours), b""))
        return Done(process.wait(SECONDS), shown, "")
    finally:
        os.close(ours)


def _read(fd: int) -> bytes:
    readable, _, _ = select.select([fd], [], [], SECONDS)
    assert readable, "no output for a minute"
    try:
        return os.read(fd, 65536)
    except OSError:  # on Linux: no process has the terminal open any more
        return b""
