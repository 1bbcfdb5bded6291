"""``./start-dev``: which programs it runs, when it installs, and how it stops.

Most tests use stand-ins for uv and the checkers. The tests with pip install small packages from a directory. ``.ci/run``
shows that a set-up from PyPI works.
"""

import hashlib
import http.server
import importlib.util
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs
from tests.dev.checkout import environment, is_alive, make_checkout, running, wait_for

UV = """\
#!/bin/sh
for last; do :; done
echo "uv $1 $2 ${last##*/}" | sed 's/ --[a-z]*//' >> "$CALLS"
if [ "$1" = venv ]; then
    exec python3 -m venv --without-pip "$last"
fi
[ ! -e "$CALLS.fail" ] || exit 1
cd .venv/lib/python3*/site-packages && printf '%s\\n' "$STAND_INS" "$SITE_PACKAGES" > stand-ins.pth
"""

CHECKER = """\
import os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(f"{__spec__.name} {' '.join(sys.argv[1:])} dev={sys.flags.dev_mode:d}\\n")
sys.exit(3 if os.environ.get("FAIL_AT") == __spec__.name else 0)
"""

SLOW_CHECKER = """\
import os, pathlib, time
try:
    pathlib.Path(os.environ["CALLS"]).touch()
    time.sleep(60)
finally:
    print("teardown", flush=True)
"""

BACKEND = """\
import pathlib, zipfile
def build_editable(directory, settings=None, metadata=None):
    name = "nar_serve-0.1.0-py3-none-any.whl"
    info = "nar_serve-0.1.0.dist-info/"
    with zipfile.ZipFile(pathlib.Path(directory, name), "w") as wheel:
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: nar-serve\\nVersion: 0.1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""


@dataclass
class Command:
    """A checkout's ``start-dev``, on a PATH with Python, a stand-in for uv, and the system's programs."""

    root: Path
    calls_file: Path
    environ: dict[str, str]

    def run(self, *arguments: str, prefix: tuple[str, ...] = (), **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, self.root / "start-dev", *arguments],
            cwd="/",
            env=self.environ | extra,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "start-dev", *arguments],
            cwd="/",
            env=self.environ | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def calls(self) -> list[str]:
        """Return what was run since the last call."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def command(tmp_path: Path) -> Command:
    binaries, stand_ins = tmp_path / "bin", tmp_path / "stand-ins"
    binaries.mkdir()
    stand_ins.mkdir()
    (binaries / "python3").symlink_to(Path(sys.executable).resolve())
    (binaries / "uv").write_text(UV)
    (binaries / "uv").chmod(0o755)
    for name in ("ruff", "mypy", "pytest"):
        (stand_ins / f"{name}.py").write_text(CHECKER)
    calls = tmp_path / "calls"
    environ = environment(
        PATH=f"{binaries}:/usr/bin:/bin",
        CALLS=str(calls),
        STAND_INS=str(stand_ins),
        SITE_PACKAGES=sysconfig.get_path("purelib"),
    )
    return Command(make_checkout(tmp_path / "checkout"), calls, environ)


DEV, SERVE, PROJECT = "uv pip install dev.txt", "uv pip install serve.txt", "uv pip install ."
SET_UP = ["uv venv .venv", DEV, PROJECT]
RUFF = ["ruff check . dev=0", "ruff format --check . dev=0"]
MYPY = ["mypy narcore api narmount narserve tests deploy locks start-dev dev=0"]


def test_all_checks_run_in_order_and_the_set_up_runs_once(command: Command) -> None:
    first = command.run("test", "-k", "a b", "tests/x")
    assert first.returncode == 0, first.stderr
    assert command.calls() == [*SET_UP, *RUFF, *MYPY, "pytest -k a b tests/x dev=1"]
    assert [line for line in first.stdout.splitlines() if line.startswith("$")] == [
        "$ ruff check .",
        "$ ruff format --check .",
        "$ mypy narcore api narmount narserve tests deploy locks start-dev",
        "$ pytest -k 'a b' tests/x",
    ]
    assert command.run("test").returncode == 0
    assert command.calls() == [*RUFF, *MYPY, "pytest -n 3 dev=1"]
    assert command.run("test", "--fast").returncode == 0
    assert command.calls() == ["pytest -n 2 --fast dev=1"]


def test_the_first_failure_ends_the_checks(command: Command) -> None:
    ended = command.run("test", FAIL_AT="mypy")
    assert ended.returncode == 3
    assert command.calls() == [*SET_UP, *RUFF, *MYPY]
    assert ended.stderr == f"start-dev: {MYPY[0].removesuffix(' dev=0')} failed with status 3\n"


def test_the_next_start_continues_a_failed_set_up(command: Command) -> None:
    fail = Path(f"{command.calls_file}.fail")
    fail.touch()
    ended = command.run("test")
    assert ended.returncode == 1
    assert "set-up failed at: " in ended.stderr
    assert command.calls() == SET_UP[:2]
    (packages,) = command.root.glob(".venv/lib/python3*/site-packages")
    (packages / "half-1.0.dist-info").mkdir()
    (packages / "whole-1.0.dist-info").mkdir()
    (packages / "whole-1.0.dist-info/RECORD").touch()

    fail.unlink()
    assert command.run("test").returncode == 0
    assert command.calls()[:3] == [DEV, PROJECT, RUFF[0]]
    assert not (packages / "half-1.0.dist-info").exists()
    assert (packages / "whole-1.0.dist-info").exists()


@pytest.mark.parametrize("file", ["pyproject.toml", "locks/dev.txt"])
def test_changed_requirements_are_installed(command: Command, file: str) -> None:
    command.run("test")
    with (command.root / file).open("a") as out:
        out.write("# changed\n")
    command.calls()
    command.run("test")
    assert command.calls()[:3] == [DEV, PROJECT, RUFF[0]]


def test_a_moved_checkout_gets_a_new_venv(command: Command) -> None:
    command.run("test")
    command.calls()
    command.root = command.root.rename(command.root.with_name("moved"))
    command.run("test")
    assert command.calls()[:3] == SET_UP


def test_the_server_starts_with_the_serve_set_and_tests_add_the_dev_set(command: Command, tmp_path: Path) -> None:
    start_dev = str(command.root / "start-dev")
    with running(Path("/"), tmp_path / "log", command.environ, start_dev) as server:
        assert server.get("/x")[2] == "answer 0 /x"
        assert server.get("/favicon.svg")[1]["content-type"].startswith("image/svg+xml")
    assert server.process.returncode == 0
    assert command.calls() == ["uv venv .venv", SERVE, PROJECT]
    log = (tmp_path / "log").read_text()
    assert "start-dev: step 1 of 3: creating .venv\nstart-dev: step 2 of 3: downloading and installing 3" in log

    command.run("test")
    assert command.calls()[:3] == [DEV, PROJECT, RUFF[0]]
    with running(Path("/"), tmp_path / "log", command.environ, start_dev):
        assert command.calls() == []


def test_help_needs_no_set_up_and_an_unknown_command_is_an_error(command: Command) -> None:
    helped, refused = command.run("--help"), command.run("serve", "--fast")
    assert (helped.returncode, helped.stderr) == (0, "")
    words = ("./start-dev test", "./start-dev lock", "PORT", "HTTP_ADDR", "NAR_CACHE_URL")
    assert all(word in helped.stdout for word in words)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"start-dev: serve --fast: no such command\n\n{helped.stdout}"
    assert command.calls() == []


def test_lock_says_how_to_install_uv(command: Command, tmp_path: Path) -> None:
    (tmp_path / "bin/uv").unlink()
    ended = command.run("lock")
    assert ended.returncode == 1
    assert ended.stderr == "renewing the locks needs uv: run .venv/bin/pip install uv, and start again\n"


# --- what can be wrong with the machine


def without_root() -> tuple[str, ...]:
    """A prefix for a command that takes the right to access every file from root."""
    if os.geteuid() != 0:
        return ()
    rights = "-dac_override,-dac_read_search"
    return ("setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}")


def test_a_venv_of_another_user_is_an_error_without_traceback(command: Command) -> None:
    command.run("test")
    hidden = command.root / ".venv/bin"
    hidden.chmod(0)
    done = command.run(prefix=without_root())
    hidden.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr == (
        f"start-dev: {hidden}/python: Permission denied; does this checkout, or its .venv, belong to another user?\n"
    )


def test_a_read_only_checkout_is_an_error_with_advice(command: Command) -> None:
    command.root.chmod(0o555)
    done = command.run(prefix=without_root())
    command.root.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr == (
        f"start-dev: {command.root} is not writable, so .venv can't be set up there\n"
        f"Clone the checkout into a directory of your own, and start there: git clone {command.root}\n"
    )
    assert command.calls() == []


def test_a_ready_venv_serves_a_read_only_checkout(command: Command) -> None:
    command.run("test")
    command.root.chmod(0o555)
    done = command.run("test", prefix=without_root())
    command.root.chmod(0o755)
    assert done.returncode == 0


@pytest.mark.parametrize(("missing", "named"), [("ensurepip pip", "ensurepip"), ("venv", "venv")])
def test_a_python_without_venv_is_an_error_that_names_the_package(
    command: Command, tmp_path: Path, missing: str, named: str
) -> None:
    (tmp_path / "bin/uv").unlink()
    hide = "".join(f"sys.modules['{name}'] = None\n" for name in missing.split())
    (tmp_path / "stand-ins/sitecustomize.py").write_text(f"import sys\n{hide}")
    done = command.run(PYTHONPATH=str(tmp_path / "stand-ins"))
    assert done.returncode == 1
    assert f"has no module {named}, which is needed to create .venv\n" in done.stderr
    assert re.search(r"^On Debian and Ubuntu, run: apt install python3(\.\d+)?-venv$", done.stderr, re.MULTILINE)
    assert not (command.root / ".venv").exists()


def test_an_old_python_is_skipped(command: Command, tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    (binaries / "python3").rename(binaries / "python3.12")
    (binaries / "python3").write_text("#!/bin/sh\nexit 1\n")
    (binaries / "python3").chmod(0o755)
    only_these = {**command.environ, "PATH": str(binaries)}
    (binaries / "sh").symlink_to("/bin/sh")
    start = [str(command.root / "start-dev"), "--help"]
    assert subprocess.run(start, env=only_these, capture_output=True, check=False).returncode == 0

    (binaries / "python3.12").unlink()
    ended = subprocess.run(start, env=only_these, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("start-dev: no Python 3.11 or newer on PATH")
    assert ended.stderr.count("\n") == 1


# --- pip, with small packages from a directory


def write_wheel(directory: Path, name: str, files: dict[str, str]) -> Path:
    info = f"{name}-1.0.dist-info/"
    metadata = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files = {**files, **{info + key: text for key, text in metadata.items()}}
    record = "".join(f"{path},,\n" for path in (*files, f"{info}RECORD"))
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for key, text in {**files, f"{info}RECORD": record}.items():
            wheel.writestr(key, text)
    return path


@pytest.fixture
def with_pip(command: Command, tmp_path: Path) -> Command:
    """The command without uv. Its lock files hold a build backend and a package with the checkers, both in a directory."""
    if importlib.util.find_spec("ensurepip") is None:
        needs.missing("ensurepip", "apt-get install python3-venv")
    (tmp_path / "bin/uv").unlink()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    checkers = {f"{name}.py": CHECKER for name in ("ruff", "mypy", "pytest")}
    paths = {
        "checkers": write_wheel(wheels, "checkers", checkers),
        "hatchling": write_wheel(wheels, "hatchling", {"hatchling/build.py": BACKEND}),
    }
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    lock = "".join(f"{name}==1.0 \\\n    --hash=sha256:{each}\n" for name, each in hashes.items())
    for name in ("serve", "dev"):
        (command.root / f"locks/{name}.txt").write_text(lock)
    inherited = {name: value for name, value in command.environ.items() if not name.startswith("PIP_")}
    command.environ = inherited | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CACHE_DIR": str(tmp_path / "pip-cache"),
    }
    return command


def test_pip_refuses_a_changed_byte_and_installs_the_original(with_pip: Command, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels/checkers-1.0-py3-none-any.whl"
    original = wheel.read_bytes()
    wheel.write_bytes(original.replace(b"dev_mode", b"dev_m0de"))
    refused = with_pip.run("test")
    assert refused.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in refused.stderr
    assert "start-dev: set-up failed at: " in refused.stderr
    assert "step 1 of 3: creating .venv\n" in refused.stdout
    assert with_pip.calls() == []

    wheel.write_bytes(original)
    done = with_pip.run("test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 1 of 2: downloading and installing 2 packages\n" in done.stdout
    assert "  2 of 2: hatchling-1.0-py3-none-any.whl\n" in done.stdout
    assert "step 2 of 2: installing nar-serve\n" in done.stdout
    assert with_pip.calls() == [*RUFF, *MYPY, "pytest -n 3 dev=1"]
    assert not (with_pip.root / ".venv/tmp").exists()


@pytest.fixture
def hanging_index() -> Iterator[str]:
    """The URL of a package index that never answers."""
    release = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            release.wait()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        release.set()
        server.shutdown()
        thread.join()


def processes_below(pid: int) -> list[int]:
    """The descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *processes_below(child)]
    return found


def stop(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to start-dev, which must end within 5 seconds with all that it started."""
    installers = wait_for(lambda: processes_below(process.pid))
    started = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert time.monotonic() - started < 5
    assert not any(map(is_alive, installers))
    assert "Traceback" not in output


def test_ctrl_c_stops_the_creation_of_the_venv(with_pip: Command) -> None:
    process = with_pip.start("test")
    wait_for((with_pip.root / ".venv/bin/python").exists)
    stop(process, signal.SIGINT)


def test_sigterm_stops_pip_and_a_waiting_start_continues(with_pip: Command, hanging_index: str) -> None:
    first = with_pip.start("test", PIP_NO_INDEX="", PIP_INDEX_URL=hanging_index, PIP_FIND_LINKS="")
    wait_for((with_pip.root / ".venv/tmp").is_dir, seconds=60)
    second = with_pip.start("test")
    assert second.stdout is not None
    assert second.stdout.readline() == "start-dev: another start-dev is setting up .venv; waiting for it\n"
    stop(first, signal.SIGTERM)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0, output
    assert "step 1 of 2: downloading" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_a_running_check_clean_up(command: Command, tmp_path: Path, number: signal.Signals) -> None:
    command.run("test")
    command.calls()
    (tmp_path / "stand-ins/ruff.py").write_text(SLOW_CHECKER)
    process = command.start("test")
    wait_for(command.calls_file.exists)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "teardown\n" in output
