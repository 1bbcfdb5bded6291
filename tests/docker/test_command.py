"""``nar-serve docker-volume`` at a terminal: invalid command lines, and --status."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from werkzeug.wrappers import Response

from narmount.docker.app import create_docker_app
from narmount.docker.driver import Driver
from narmount.docker.records import Records
from narmount.docker.service import Service
from narserve import program
from tests import ROOT, needs
from tests.docker.fakevolumes import FakeVolumes
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
    ("options", "message"),
    [
        ((), "--cache NAME=DIR is missing; DIR is the directory of a nar-serve mount"),
        (("--cache=/mnt",), "is not NAME=DIR; try --cache main=/srv/nix-store"),
        (("--cache=main=",), "is not NAME=DIR"),
        (("--cache=../x=/mnt",), "is not NAME=DIR"),
        (("--cache=a=/mnt", "--cache=a=/srv"), "--cache a is given twice"),
        (("--cache=a=/mnt", "--metrics=nowhere"), "--metrics"),
        (("--cache=a=/mnt", "--json"), "--json needs --status"),
    ],
)
def test_invalid_options_are_errors_and_nothing_is_started(
    tmp_path: Path, options: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    needs.fuse()
    assert program.run([*command(tmp_path), *options]) == 2
    errors = capfd.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("volumes", [0, 1])
def test_the_status_has_a_line_for_each_cache_and_volume(
    tmp_path: Path, volumes: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    driver = Driver(FakeVolumes(), Records(tmp_path / "records"), tmp_path / "mounts", ("main",))
    for number in range(volumes):
        driver.create(f"v{number}", {"mode": "ro"})
    caches = [
        {"name": "main", "directory": "/srv/main", "mode": "passthrough", "stores": ["https://a.example", "file:///b"]},
        {"name": "other", "directory": "/srv/other", "error": "no process answers"},
    ]
    fields = {"pid": 42, "since": 86400.5, "state_dir": "/var/x", "caches": caches, "volumes": driver.status()}
    service = Service(tmp_path / "p.sock")
    service.start(create_docker_app(driver, lambda: fields)[0])
    assert program.run([*command(tmp_path), "--status"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "process 42, since 1970-01-02 00:00:00, volumes in /var/x",
        "cache main  /srv/main  passthrough, https://a.example file:///b",
        "cache other  /srv/other  no process answers",
        "volume v0  ro of main, 0 users" if volumes else "no volumes; create one: docker volume create -d nar-serve",
    ]
    assert program.run([*command(tmp_path), "--status", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == fields
    service.close()


def test_the_status_of_another_program_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    service = Service(tmp_path / "p.sock")
    service.start(Response(b"{}"))
    assert program.run([*command(tmp_path), "--status"]) == 3
    assert "is not nar-serve docker-volume of this version" in capfd.readouterr().err
    service.close()


def test_the_status_without_a_plugin_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, "--status")
    assert done.returncode == 3
    assert "is nar-serve docker-volume running with this --socket?" in done.stderr


def test_a_file_at_the_path_of_the_socket_is_an_error(tmp_path: Path) -> None:
    needs.fuse()
    (tmp_path / "p.sock").write_text("precious")
    done = run(tmp_path, "--cache=main=/mnt")
    assert done.returncode == 2
    assert "exists and is not a socket; use another path, or move the file away" in done.stderr
