"""``nar-serve csi`` at a terminal: invalid command lines, stopping, and --status."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from narcore.errors import MountError, NarcoreError, SettingsError
from narmount.csi.registration import registration_path
from narmount.csi.server import code_of, prepare_socket
from narmount.volumes.caches import parse_caches
from narserve import program
from tests import needs
from tests.csi.calling import client
from tests.csi.conftest import NAME, Running
from tests.mount import mounting


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "narserve", "csi", *map(str, options)]
    return subprocess.run(
        command, env=mounting.environment({}), capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--cache NAME=DIR is missing"),
        (["--cache", "x"], "--cache 'x' is not NAME=DIR; try --cache main=/srv/nix-store"),
        (["--cache", "=x"], "is not NAME=DIR"),
        (["--cache", "https://x=y"], "is not NAME=DIR"),
        (["--cache", "a=/x", "--cache", "a=/y"], "--cache a is given twice"),
        (["--cache", "a=/x", "--driver-name", "a/b"], "--driver-name 'a/b' is not a domain name"),
        (["--cache", "a=/x", "--driver-name", "x" * 64], "is not a domain name"),
        (["--cache", "a=/x", "--endpoint", "tcp://:1"], "is not unix://PATH with an absolute path"),
        (["--cache", "a=/x", "--endpoint", "unix://csi.sock"], "is not unix://PATH with an absolute path"),
        (["--cache", "a=/x", "--node-id", "a b"], "--node-id 'a b' is not a valid node name"),
        (["--cache", "a=/x", "--metrics", "x"], "--metrics"),
        (["--cache", "a=/x", "--json"], "--json needs --status"),
        (["--nonsense"], "No such option"),
    ],
)
def test_an_invalid_command_line_is_an_error(
    options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    needs.fuse()
    assert program.run(["csi", *options]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert message in output.err
    assert "Traceback" not in output.err


def test_an_endpoint_longer_than_a_socket_path_is_an_error(tmp_path: Path) -> None:
    needs.fuse()
    done = run("--cache", "a=/x", "--endpoint", f"unix://{tmp_path}/{'x' * 120}", "--state-dir", tmp_path / "state")
    assert done.returncode == 2
    assert "is too long for a socket" in done.stderr


def test_the_plugin_stops_while_a_call_hangs(running: Running) -> None:
    """The kernel may be waiting for a mount."""
    program = (
        "import sys, threading; from narserve import program; from narmount.csi import server; from narmount.fuse import syscalls;"
        "server.STOP_SECONDS = 0.1; syscalls.mount_overlay = lambda *_, **__: threading.Event().wait();"
        "sys.exit(program.run(sys.argv[1:]))"
    )
    kubelet, registry = running.place / "another", registration_path(running.place / "another", NAME)
    options = [f"--cache=main={running.place}/main", f"--kubelet-dir={kubelet}", f"--run-dir={running.place}/run"]
    command = [sys.executable, "-c", program, "csi", *options, f"--state-dir={running.place}/another-state"]
    with subprocess.Popen(command, env=mounting.environment({}), stderr=subprocess.PIPE, text=True) as plugin:
        try:
            mounting.until(registry.exists, "the plugin", 30)
            with client(kubelet / "plugins" / NAME / "csi.sock") as call, ThreadPoolExecutor(1) as threads:
                hanging = threads.submit(call.publish, "a", kubelet / "pods/1/mount")
                mounting.until((kubelet / "pods/1/mount").exists, "the target", 30)
                plugin.terminate()
                assert plugin.wait(10) == 0
                assert hanging.exception() is not None
        finally:
            plugin.kill()
        assert plugin.stderr is not None
        assert "stopping although 1 calls are still running" in plugin.stderr.read()


def test_without_grpc_the_command_names_the_extra_to_install() -> None:
    program = "import sys; sys.modules['grpc'] = None; from narserve.program import run; sys.exit(run(['csi', '--cache', 'a=/x']))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=mounting.environment({}), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "pip install '.[csi]'" in done.stderr


def test_status_shows_that_plugin_and_mounts_do_not_answer(tmp_path: Path) -> None:
    options = ["--cache", f"main={tmp_path}/m", "--endpoint", f"unix://{tmp_path}/x.sock"]
    options += ["--state-dir", f"{tmp_path}/s", "--run-dir", f"{tmp_path}/run"]
    done = run(*options, "--status")
    assert done.returncode == 3
    plugin, cache = done.stdout.splitlines()
    assert plugin == f"plugin {tmp_path}/x.sock  does not answer"
    assert cache.startswith(f"cache main  {tmp_path}/m  no process answers")
    found = json.loads(run(*options, "--status", "--json").stdout)
    assert (found["state"], found["volumes"]) == ("does not answer", [])
    assert os.listdir(tmp_path) == [], "--status creates no files"


def test_status_shows_plugin_caches_and_volumes(running: Running) -> None:
    running.call.publish("csi-1", running.target())
    options = ("--state-dir", running.place / "state", "--kubelet-dir", running.place / "kubelet")
    caches = [f"--cache={name}={running.place / name}" for name in ("main", "other")]
    done = run(*options, *caches, "--run-dir", running.place / "run", "--status")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("csi.sock  ready")
    assert lines[3:] == [f"volume csi-1  main, overlay  {running.target()}"]


def test_links_in_the_paths_of_caches_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "real/store").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    found = parse_caches([f"b={tmp_path}/link/../link/store", f"a={tmp_path}/real/x"])
    assert found == {"b": tmp_path / "real/store", "a": tmp_path / "real/x"}
    assert [*found] == ["b", "a"], "the order is kept, since the first is the default"


def test_a_file_at_the_path_of_the_socket_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.sock").write_text("mine")
    with pytest.raises(SettingsError, match="exists and is not a socket"):
        prepare_socket(tmp_path / "x.sock")
    assert (tmp_path / "x.sock").read_text() == "mine"


def test_every_error_has_a_code() -> None:
    kinds: list[type[BaseException]] = [MountError, OSError, ValueError]
    pending: list[type[BaseException]] = [NarcoreError]
    while pending:
        kind = pending.pop()
        kinds.append(kind)
        pending += kind.__subclasses__()
    assert {code_of(kind("x")).name for kind in kinds} == {
        "INTERNAL", "INVALID_ARGUMENT", "ALREADY_EXISTS", "FAILED_PRECONDITION", "NOT_FOUND", "ABORTED",
        "UNAVAILABLE",
    }  # fmt: skip
