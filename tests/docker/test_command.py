"""What is wrong with a command line is told in one line, and nothing is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from narserve import program
from tests import ROOT, needs
from tests.mount.mounting import environment


def command(directory: Path) -> list[str]:
    return ["docker-volume", f"--socket={directory}/p.sock", f"--state-dir={directory}/state"]


def run(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "narserve", *command(directory), *options],
        cwd=ROOT,
        env=environment({"NAR_RUN_DIR": str(directory / "run")}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "--cache NAME=DIR is missing: DIR is where nar-serve mount shows a binary cache"),
        (("--cache=/mnt",), "is not NAME=DIR; try --cache main=/srv/nix-store"),
        (("--cache=main=",), "is not NAME=DIR"),
        (("--cache=../x=/mnt",), "is not NAME=DIR"),
        (("--cache=a=/mnt", "--cache=a=/srv"), "--cache a is there twice"),
        (("--cache=a=/mnt", "--metrics=nowhere"), "--metrics"),
        (("--cache=a=/mnt", "--json"), "--json goes with --status"),
    ],
)
def test_options_that_are_refused(
    tmp_path: Path, options: tuple[str, ...], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    needs.fuse()
    assert program.run([*command(tmp_path), *options]) == 2
    errors = capfd.readouterr().err
    assert told in errors
    assert errors.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_nobody_has_a_status(tmp_path: Path) -> None:
    done = run(tmp_path, "--status")
    assert done.returncode == 3
    assert "is nar-serve docker-volume running? --socket names another one" in done.stderr


def test_a_socket_that_can_not_be(tmp_path: Path) -> None:
    needs.fuse()
    (tmp_path / "p.sock").write_text("precious")
    done = run(tmp_path, "--cache=main=/mnt")
    assert done.returncode == 2
    assert "is there and is no socket; name another path, or move it away" in done.stderr
