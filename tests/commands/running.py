"""Ways to run a command: in the process of the test, as a program of its own, and at a terminal."""

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
    """How a command ended; ``code`` is minus the signal where one ended it."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode("utf-8", "surrogateescape").splitlines()


class InProcess:
    """Runs commands here: quick, and their code is measured. ``use`` says which caches they ask."""

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
        """A command that has to succeed, in silence."""
        done = self(*arguments)
        assert (done.code, done.err) == (0, ""), done
        return done


def stored(directory: Path, files: Mapping[str, bytes]) -> Path:
    """The files of a binary cache, as a directory."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NAR_", "NIX_", "PYTHON"))}
    # PYTHONDEVMODE: a file or a connection that is left open shows on standard error.
    return kept | {"PYTHONDEVMODE": "1"} | dict(settings)


def start(*arguments: str, settings: Mapping[str, str], cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """The program, with pipes for its output."""
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
    """The program with all three streams at one terminal: ``out`` has everything that it showed."""
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
    assert readable, "nothing came for a minute"
    try:
        return os.read(fd, 65536)
    except OSError:  # Linux: nobody has the terminal open any more
        return b""
