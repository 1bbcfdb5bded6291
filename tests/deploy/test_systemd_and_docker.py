"""The unit file, by systemd itself; the Dockerfile, by its words: there is no docker where these tests run."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from narcore.settings import Settings
from narserve.commands.mount import mount
from tests import ROOT, needs

DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "nar-serve.service").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")


def analyze(*arguments: str | Path) -> str:
    done = subprocess.run(
        [needs.program("systemd-analyze"), *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there."""
    path = tmp_path / "nar-serve.service"
    path.write_text(UNIT.replace("/opt/nar-serve/bin/nar-serve", sys.executable))
    return path


def test_systemd_understands_all_of_the_unit(unit: Path) -> None:
    analyze("verify", unit)
    unit.write_text(unit.read_text().replace("ProtectHome=true", "ProtectHose=true"))
    with pytest.raises(AssertionError, match="ProtectHose"):
        analyze("verify", unit)


def test_systemd_understands_the_mount(tmp_path: Path) -> None:
    path = tmp_path / "nar-serve-mount.service"
    path.write_text((DEPLOY / path.name).read_text().replace("/opt/nar-serve/bin/nar-serve", sys.executable))
    analyze("verify", path)


def test_the_units_share_no_directory() -> None:
    """systemd gives one to whoever starts last, under the feet of the other."""
    units = [path.read_text() for path in sorted(DEPLOY.glob("*.service"))]
    named = [re.findall(r"^(?:Cache|Runtime|State)Directory=.*$", unit, re.MULTILINE) for unit in units]
    assert len(named) == 2
    assert not set(named[0]) & set(named[1])


def test_the_mount_is_started_by_options_that_there_are() -> None:
    command = re.search(r"^ExecStart=/opt/nar-serve/bin/(.*)$", (DEPLOY / "nar-serve-mount.service").read_text(), re.M)
    assert command is not None
    with mount.make_context("nar-serve mount", command[1].split()[2:]) as context:
        assert context.params["foreground"]
        assert context.params["allow_other"]


def test_the_service_is_hardened(unit: Path) -> None:
    """1.2 of 10, where 10 is a service without any of it. What is left are the network, and that it has a root file system."""
    assert "OK" in analyze("security", "--offline=true", "--no-pager", "--threshold=13", unit)


def test_it_is_given_the_time_that_it_needs_to_stop() -> None:
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > Settings().stop_seconds + 2
    assert f"--stop-timeout {stop[1]}" in DOCKERFILE


def test_the_directory_for_the_cache_is_found() -> None:
    """systemd says where it is; the image sets it."""
    given = {"CACHE_DIRECTORY": "/var/cache/nar-serve", "HOME": "/"}
    directory = Settings.from_environ(given).cache_dir
    assert directory == Path("/var/cache/nar-serve")
    assert f"NAR_CACHE_DIR={directory}" in DOCKERFILE
    assert f"install -d -o 10001 -g 10001 -m 0700 {directory}" in DOCKERFILE


def test_what_the_image_is_made_of_is_there() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert {"narcore", "api", "narmount", "narserve", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    (installed,) = re.findall(r'"\.\[(.*)\]"', DOCKERFILE)
    assert {"server", "metrics"} <= set(installed.split(",")) <= extras
    (documented,) = re.findall(r"nar-serve\[(.*)\]", UNIT)
    assert {*installed.split(",")} == {*documented.split(","), "csi"}  # that is for deploy/kubernetes


def test_the_image_runs_as_nobody_in_particular() -> None:
    last_stage = DOCKERFILE.rpartition("FROM ")[2]
    assert re.findall(r"^USER (.*)$", last_stage, re.MULTILINE) == ["10001:10001"]
    assert last_stage.index("USER ") < last_stage.index("ENTRYPOINT ")
    assert 'ENTRYPOINT ["nar-serve"]' in last_stage
    assert 'CMD ["serve"]' in last_stage
