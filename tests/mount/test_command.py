"""``nar-serve mount`` as a program: in the background and the foreground, as root and as a user, and its messages."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from narcore.errors import MountError
from narcore.sizes import human_size
from narmount.daemon.control import control_path, make_run_dir
from narmount.fuse.mountinfo import mounts_at
from narserve.commands.mount import mount
from tests import ROOT, builders, needs
from tests.mount import mounting
from tests.mount.conftest import write
from tests.mount.mounting import PROGRAM, until
from tests.mount.samples import KEY, OTHER_KEY, base

SECONDS = 40
NOBODY = 65534


class Command:
    """Runs the program with its own binary cache. ``target`` is the directory to mount at."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.target = directory / "mnt"
        self.run_dir = directory / "run"
        self.target.mkdir()
        write(directory / "store", builders.binary_cache({"hello": {"greeting": b"hello\n"}}, secret_key=KEY))
        self.environ = mounting.environment(
            {
                "NAR_RUN_DIR": str(self.run_dir),
                "NAR_CACHE_DIR": str(directory / "cache"),
                "NAR_CACHE_SIZE": "1G",
                "NAR_CACHE_URL": (directory / "store").as_uri(),
                "NAR_TRUSTED_PUBLIC_KEYS": str(KEY.public_key),
            }
        )

    @property
    def file(self) -> Path:
        return self.target / base("hello") / "greeting"

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            env=self.environ,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def ok(self, *arguments: str | Path) -> str:
        """Return the output of a command that succeeds."""
        done = self(*arguments)
        assert done.returncode == 0, done
        return done.stdout + done.stderr

    def fails(self, *arguments: str | Path, code: int = 3) -> str:
        """Return the one error line of a command that fails."""
        done = self(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), done
        (line,) = done.stderr.splitlines()
        assert line.startswith("nar-serve: ")
        return line

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("--status", "--json", self.target))
        return found

    def processes(self) -> tuple[int, int]:
        status = self.status()
        return status["holder_pid"], status["worker_pid"]

    def kill(self) -> None:
        """Kill holder and worker, which makes the mount dead."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(self.target), "a dead mount")

    def end(self) -> None:
        with contextlib.suppress(AssertionError, ProcessLookupError):
            os.kill(self.processes()[0], signal.SIGKILL)
        mounting.unmount_all(self.target)


def is_alive(target: Path) -> bool:
    try:
        target.stat()
    except OSError:
        return False
    return True


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    needs.fuse()
    one = Command(tmp_path)
    yield one
    one.end()


# --- mounting and unmounting


def test_a_mount_in_the_background_is_shown_and_unmounted(command: Command) -> None:
    said = command.ok(command.target)
    assert said.startswith(f"nar-serve: {command.target} is mounted: ")
    assert said.endswith(", 1 store\n")
    assert command.file.read_bytes() == b"hello\n"

    status = command.status()
    assert (status["target"], status["early"], status["restarts"]) == (str(command.target), False, 0)
    [listed] = json.loads(command.ok("--status", "--json"))
    changing = ("counts", "interrupts", "read_bytes", "waiting")  # another process may access this mount meanwhile
    assert {**listed, **dict.fromkeys(changing)} == {**command.status(), **dict.fromkeys(changing)}
    assert "allow_other" not in mounts_at(command.target)[0].super_options
    holder, worker = command.processes()
    assert os.getsid(holder) == holder  # closing the terminal does not end it

    shown = command.ok("--status")
    assert shown.splitlines()[:4] == command.ok("--status", command.target).splitlines()[:4]
    assert shown.splitlines()[0] == str(command.target)
    for fact in (status["mode"], command.environ["NAR_CACHE_URL"], f"holder {holder}, worker {worker}", "1 known"):
        assert fact in shown
    assert f"of {human_size(1 << 30)} in {command.directory / 'cache'}" in shown

    assert command.ok("--unmount", command.target) == ""
    assert mounts_at(command.target) == []
    assert list((command.run_dir / "mounts").glob("*.sock")) == []
    assert "nothing is mounted" in command.ok("--status")
    assert command.ok("--status", "--json") == "[]\n"
    command.ok(command.target)  # mounting again works immediately


def test_options_take_effect(command: Command) -> None:
    log = command.directory / "log"
    other = command.directory / "o"
    said = command.ok(
        *("--store", command.directory / "store", "--store", "https://192.0.2.1"),
        *("--early", "--allow-other", "--no-passthrough", "--log", log),
        *("--cache-dir", other / "cache", "--run-dir", other / "run", command.target),
    )
    assert said.endswith("is mounted: plain (passthrough is turned off), 2 stores\n")
    command.environ["NAR_RUN_DIR"] = str(other / "run")
    status = command.status()
    assert status["early"]
    assert status["stores"] == [(command.directory / "store").as_uri(), "https://192.0.2.1"]
    assert status["cache"]["directory"] == str(other / "cache")
    assert "allow_other" in mounts_at(command.target)[0].super_options
    assert "plain (passthrough is turned off)" in command.ok("--status")
    os.kill(status["worker_pid"], signal.SIGKILL)
    until(lambda: "starting another" in log.read_text(), "a message in the log")
    assert "restarts of the worker: 1" in command.ok("--status")


def test_without_trusted_keys_a_warning_is_printed(command: Command) -> None:
    del command.environ["NAR_TRUSTED_PUBLIC_KEYS"]
    warning, mounted = command.ok(command.target).splitlines()
    assert warning.endswith("NAR_TRUSTED_PUBLIC_KEYS is not set: store paths are accepted without a trusted signature")
    assert "is mounted" in mounted


def test_in_the_foreground_the_process_is_the_holder(command: Command) -> None:
    with subprocess.Popen([*PROGRAM, "--foreground", str(command.target)], env=command.environ, cwd=ROOT) as process:
        try:
            until(lambda: mounts_at(command.target), "a mount")
            assert command.file.read_bytes() == b"hello\n"
            assert command.processes()[0] == process.pid  # so that a supervisor watches the holder
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
    assert mounts_at(command.target) == []


def test_ctrl_c_unmounts(command: Command, tmp_path: Path) -> None:
    """A terminal sends the signal to all processes of the program."""
    log = tmp_path / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [*PROGRAM, "--foreground", str(command.target)],
            env=command.environ,
            cwd=ROOT,
            stderr=errors,
            start_new_session=True,
        ) as process,
    ):
        try:
            until(lambda: "Ctrl-C or SIGTERM unmounts it" in log.read_text(), "a message says how to unmount")
            assert command.file.read_bytes() == b"hello\n"
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
    assert len(log.read_text().splitlines()) == 1
    assert mounts_at(command.target) == []


def test_status_shows_why_a_read_failed(command: Command) -> None:
    command.environ["NAR_TRUSTED_PUBLIC_KEYS"] = str(OTHER_KEY.public_key)
    command.ok(command.target)
    with pytest.raises(OSError, match="Input/output error"):
        command.file.read_bytes()
    (line,) = [line for line in command.ok("--status").splitlines() if line.startswith("  last failure")]
    assert "no trusted key has signed" in line


def test_metrics_are_served_by_each_worker(command: Command) -> None:
    import requests

    with open_port() as port:
        pass
    command.ok("--metrics", f"127.0.0.1:{port}", command.target)
    assert command.file.read_bytes() == b"hello\n"
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS).text
    assert f'nar_mount_info{{mode="{command.status()["mode"]}",target="{command.target}"}} 1.0' in text
    assert "nar_mount_paths_known 1.0" in text
    os.kill(command.processes()[1], signal.SIGKILL)  # the next worker listens on the same port
    until(lambda: command.status()["restarts"] == 1, "a new worker")
    assert "nar_mount_restarts_total 1.0" in requests.get(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS).text


@contextlib.contextmanager
def open_port() -> Iterator[int]:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# --- existing mounts


def test_a_mount_that_is_alive_is_not_replaced(command: Command) -> None:
    command.ok(command.target)
    assert "nar-serve is already mounted at" in command.fails(command.target)
    other_run_dir = command.fails(
        "--run-dir", command.directory / "other", command.target
    )  # its control socket is elsewhere
    assert "nar-serve is already mounted at" in other_run_dir
    assert command.file.read_bytes() == b"hello\n"
    assert len(mounts_at(command.target)) == 1


def test_only_one_of_two_concurrent_commands_mounts(command: Command) -> None:
    program = [*PROGRAM, str(command.target)]
    both = [subprocess.Popen(program, env=command.environ, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert sorted(process.wait(SECONDS) for process in both) == [0, 3]
    assert len(mounts_at(command.target)) == 1


def test_a_dead_mount_is_shown_and_replaced(command: Command) -> None:
    command.ok(command.target)
    command.kill()
    for arguments in (("--status",), ("--status", command.target)):
        done = command(*arguments)
        assert done.returncode == 3
        assert done.stdout.splitlines()[0] == str(command.target)
        assert "dead         no process answers" in done.stdout
    done = command("--status", "--json")
    (shown,) = json.loads(done.stdout)
    assert (done.returncode, shown["target"]) == (3, str(command.target))
    assert shown["dead"]
    assert "has died" in shown["error"]

    assert f"the mount at {command.target} is dead; removing it" in command.ok(command.target)
    assert command.file.read_bytes() == b"hello\n"
    assert len(mounts_at(command.target)) == 1


def test_a_dead_mount_is_unmounted(command: Command) -> None:
    command.ok(command.target)
    command.kill()
    command.ok("--unmount", command.target)
    assert mounts_at(command.target) == []
    assert "nothing is mounted" in command.ok("--status")
    assert list((command.run_dir / "mounts").glob("*.sock")) == []


def test_lazy_unmounts_a_mount_in_use(command: Command) -> None:
    command.ok(command.target)
    with command.file.open("rb") as file:
        line = command.fails("--unmount", command.target)
        assert "busy" in line
        assert "--lazy" in line
        assert "its processes end when no program" in command.ok("--unmount", "--lazy", command.target)
        assert mounts_at(command.target) == []
        assert file.read() == b"hello\n"
    until(lambda: not control_path(command.run_dir, command.target).exists(), "the end of the holder")


def test_links_are_followed_except_the_last_component(command: Command) -> None:
    (command.directory / "link").symlink_to(command.directory)
    command.ok(command.directory / "link/x/../mnt")
    assert command.file.read_bytes() == b"hello\n"
    command.ok("--status", command.directory / "link/mnt")
    command.ok("--unmount", command.directory / "link/mnt")
    (command.directory / "last").symlink_to(command.target)
    assert "is a link to" in command.fails(command.directory / "last")


@pytest.mark.parametrize("option", [(), ("--foreground",)])
def test_the_working_directory_can_be_the_target(command: Command, option: tuple[str, ...]) -> None:
    program = [*PROGRAM, *option, "."]
    process = subprocess.Popen(program, env=command.environ, cwd=command.target, stderr=subprocess.DEVNULL)
    until(lambda: mounts_at(command.target), "a mount")
    assert command.file.read_bytes() == b"hello\n"
    command.ok("--unmount", command.target)
    assert process.wait(SECONDS) == 0


def test_a_mount_that_hangs_is_unmounted(command: Command) -> None:
    command.ok(command.target)
    _, worker = command.processes()
    stop(worker)
    try:
        looking = until_unknown(command.target)
        command.ok("--unmount", "--lazy", command.target)
        assert mounts_at(command.target) == []
    finally:
        os.kill(worker, signal.SIGKILL)
    looking.wait(SECONDS)


def stop(process: int) -> None:
    """Stop a process, and wait until none of its threads runs: a thread that still reads a request makes its client unkillable."""
    os.kill(process, signal.SIGSTOP)
    tasks = Path(f"/proc/{process}/task")
    until(
        lambda: all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in tasks.glob("*/stat")),
        "a stopped process",
    )


def until_unknown(target: Path) -> subprocess.Popen[bytes]:
    """Wait until the kernel asks for the attributes of the root again, so that stat(1) hangs.

    Returns the stat process, which has been killed. If the worker has read its request, it ends only after the worker.
    """

    def hanging() -> subprocess.Popen[bytes] | None:
        process = subprocess.Popen(["stat", target], stdout=subprocess.DEVNULL)
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            return process
        return None

    looking = until(hanging, "a mount that hangs")
    assert looking is not None
    return looking


@pytest.mark.parametrize("option", [(), ("--run-dir", "/tmp/nar-serve-test-other")])
def test_a_mount_that_hangs_is_not_dead(command: Command, option: tuple[str, ...]) -> None:
    command.ok(command.target)
    holder, worker = command.processes()
    stop(worker)
    try:
        assert "nar-serve is already mounted at" in command.fails(*option, command.target)
        if not option:
            done = command("--status")
            assert done.returncode == 3
            assert "no answer    the mount with the control socket" in done.stdout
            assert "the holder starts another" in done.stdout
    finally:
        os.kill(worker, signal.SIGCONT)
    assert command.processes() == (holder, worker)


# --- errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "DIR is missing"),
        (["--unmount"], 2, "DIR is missing"),
        (["--unmount", "--status", "mnt"], 2, "can't be used together"),
        (["--json", "mnt"], 2, "--json needs --status"),
        (["--lazy", "mnt"], 2, "--lazy needs --unmount"),  # otherwise a forgotten --unmount would mount
        (["--foreground", "--log", "log", "mnt"], 2, "--log can't be used with --foreground"),
        (["none"], 3, "mkdir -p"),
        (["store/nix-cache-info"], 3, "is not a directory; choose a directory"),
        (["--unmount", "mnt"], 3, "nar-serve is not mounted at"),
        (["--cache-dir", "off", "mnt"], 2, "NAR_CACHE_DIR=off turns off"),
        (["--cache-dir", "mnt/cache", "mnt"], 2, "the mount would hide the cache"),
        (["--store", "ftp://x", "mnt"], 2, "not a store URL"),
        (["--store", "https://x?priority=high", "mnt"], 2, "priority"),
        (["--metrics", "9000", "mnt"], 2, "is not host:port"),
        (["--run-dir", "x" * 150, "mnt"], 3, "choose a shorter one with --run-dir"),
        (["--run-dir", "mnt/cache", "mnt"], 3, "the mount would hide"),
        (["--run-dir", "store/nix-cache-info", "mnt"], 3, "choose another directory with --run-dir"),
        (["--cache-dir", "store/nix-cache-info", "mnt"], 3, "File exists; choose another directory"),
        (["--log", "none/log", "mnt"], 3, "No such file"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused_with_a_reason(
    command: Command, arguments: list[str], code: int, said: str
) -> None:
    places = {"none", "mnt", "store/nix-cache-info", "mnt/cache", "none/log"}
    given = [command.directory / word if word in places or word.startswith("xx") else word for word in arguments]
    assert said in command.fails(*given, code=code)
    assert mounts_at(command.target) == []
    assert not list(command.directory.glob("run/mounts/*"))


def test_a_mount_that_would_hide_the_program_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(command.target / "venv"))
    done = CliRunner(env=command.environ).invoke(mount, [str(command.target)])
    assert isinstance(done.exception, MountError)
    assert "which nar-serve needs" in str(done.exception)


def test_status_says_that_nothing_is_mounted(command: Command) -> None:
    done = command("--status", command.target)
    assert done.returncode == 3
    assert "nar-serve has not mounted anything there" in done.stdout
    make_run_dir(command.run_dir)
    (command.run_dir / "mounts/rubbish.sock").touch()  # a leftover socket without a mount or a listener is not shown
    assert "nothing is mounted" in command.ok("--status")


def test_status_mentions_mounts_with_another_run_dir(command: Command) -> None:
    command.ok("--run-dir", command.directory / "other", command.target)
    said = command.ok("--status")
    assert f"nothing is mounted with NAR_RUN_DIR={command.run_dir}" in said
    assert str(command.target) in said
    done = command("--status", command.target)
    assert (done.returncode, "it is mounted, but its NAR_RUN_DIR is not" in done.stdout) == (3, True), done
    command.ok("--run-dir", command.directory / "other", "--unmount", command.target)


def test_help_shows_examples_and_requirements(command: Command) -> None:
    text = command.ok("--help")
    for word in ("nar-serve mount /nix/store", "--unmount /nix/store", "fusermount3", "NAR_RUN_DIR"):
        assert word in text
    done = subprocess.run(
        [sys.executable, "-m", "narserve", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Mount all store paths as a file system" in done.stdout


# --- as a user

# The Python of the tests may be where only root can read. This capability has no effect on mounting.
READ_ALL = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
AS_NOBODY = """set -e
mount -t tmpfs -o mode=755 tmpfs /mnt
mknod -m 666 /mnt/fuse c 10 229
mount --bind /mnt/fuse /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups $READ_ALL sh -e -c '
    cd "$DIR"
    "$@" mnt
    cat "$FILE"
    "$@" --status --json mnt
    "$@" --unmount mnt
    ! cat "$FILE" 2>&1 >/dev/null
    "$@" --status
' sh "$@"
"""


def test_a_user_mounts_reads_and_unmounts(command: Command) -> None:
    needs.programs(("unshare", "setpriv", "fusermount3"))
    directory = Path(f"/var/tmp/nar-serve-test-{os.getpid()}")  # every user can reach it
    shutil.copytree(command.directory, directory)
    try:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        environ = {name: text.replace(str(command.directory), str(directory)) for name, text in command.environ.items()}
        places = {"DIR": str(directory), "FILE": f"mnt/{base('hello')}/greeting", "READ_ALL": READ_ALL}
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh", *PROGRAM],
            env=environ | places,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    finally:
        shutil.rmtree(directory)
    assert done.returncode == 0, done
    first, second, last = done.stdout.splitlines()
    assert first == "hello"
    status = json.loads(second)
    assert (status["mode"], status["mode_reason"]) == ("plain", "passthrough needs root (CAP_SYS_ADMIN)")
    assert "No such file" in last
    assert "mnt is mounted: plain (passthrough needs root (CAP_SYS_ADMIN)), 1 store" in done.stderr
    assert "nothing is mounted" in done.stderr
