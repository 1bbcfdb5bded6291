"""The systemd units, checked by systemd itself, and the text of the Dockerfile: these tests do not need docker."""

import re
import subprocess
import sys
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
    """The unit file, with a program that exists."""
    path = tmp_path / "nar-serve.service"
    path.write_text(UNIT.replace("/opt/nar-serve/bin/nar-serve", sys.executable))
    return path


def test_systemd_accepts_the_unit(unit: Path) -> None:
    analyze("verify", unit)
    unit.write_text(unit.read_text().replace("ProtectHome=true", "ProtectHose=true"))
    with pytest.raises(AssertionError, match="ProtectHose"):
        analyze("verify", unit)


def test_systemd_accepts_the_mount_unit(tmp_path: Path) -> None:
    path = tmp_path / "nar-serve-mount.service"
    path.write_text((DEPLOY / path.name).read_text().replace("/opt/nar-serve/bin/nar-serve", sys.executable))
    analyze("verify", path)


def test_the_units_share_no_directory() -> None:
    """systemd would give a shared directory to the service that starts last, while the other service uses it."""
    units = [path.read_text() for path in sorted(DEPLOY.glob("*.service"))]
    directories = [re.findall(r"^(?:Cache|Runtime|State)Directory=.*$", unit, re.MULTILINE) for unit in units]
    assert len(directories) == 2
    assert not set(directories[0]) & set(directories[1])


def test_the_options_of_the_mount_unit_exist() -> None:
    command = re.search(r"^ExecStart=/opt/nar-serve/bin/(.*)$", (DEPLOY / "nar-serve-mount.service").read_text(), re.M)
    assert command is not None
    with mount.make_context("nar-serve mount", command[1].split()[2:]) as context:
        assert context.params["foreground"]
        assert context.params["allow_other"]


def test_the_service_is_hardened(unit: Path) -> None:
    """The exposure is 1.2 of 10, where 10 is no hardening. The rest is network access and the shared root file system."""
    assert "OK" in analyze("security", "--offline=true", "--no-pager", "--threshold=13", unit)


def test_the_stop_timeouts_are_longer_than_nar_stop_seconds() -> None:
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > Settings().stop_seconds + 2
    assert f"--stop-timeout {stop[1]}" in DOCKERFILE


def test_the_cache_directory_is_set() -> None:
    """systemd sets CACHE_DIRECTORY; the image sets NAR_CACHE_DIR."""
    given = {"CACHE_DIRECTORY": "/var/cache/nar-serve", "HOME": "/"}
    directory = Settings.from_environ(given).cache_dir
    assert directory == Path("/var/cache/nar-serve")
    assert f"NAR_CACHE_DIR={directory}" in DOCKERFILE
    assert f"install -d -o 10001 -g 10001 -m 0700 {directory}" in DOCKERFILE


def test_the_files_of_the_image_exist() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert {"narcore", "api", "narmount", "narserve", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


def test_the_image_and_the_service_install_the_lock_of_every_extra() -> None:
    for text in (DOCKERFILE, UNIT):
        assert "/opt/nar-serve/bin/pip install " in text
        assert "--require-hashes -r locks/all.txt" in text
        assert "--no-deps --no-build-isolation ." in text
    assert "pip uninstall" in DOCKERFILE  # tests/deploy/test_locks.py compares the names with the lock


def test_the_image_runs_as_an_unprivileged_user() -> None:
    last_stage = DOCKERFILE.rpartition("FROM ")[2]
    assert re.findall(r"^USER (.*)$", last_stage, re.MULTILINE) == ["10001:10001"]
    assert last_stage.index("USER ") < last_stage.index("ENTRYPOINT ")
    assert 'ENTRYPOINT ["nar-serve"]' in last_stage
    assert 'CMD ["serve"]' in last_stage
