"""The command itself, with stand-ins for uv and the checkers: what it runs, when, and what it trusts.

That a real set-up works, from PyPI and in a fresh clone, is what ``.ci/run`` shows every time.
"""

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dev.checkout import environment, make_checkout, running

UV = """\
#!/bin/sh
echo "uv $1 $2" >> "$CALLS"
if [ "$1" = venv ]; then
    for directory; do :; done
    exec python3 -m venv --without-pip "$directory"
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


@dataclass
class Command:
    """A checkout's ``start-dev``, on a PATH with a Python, a stand-in for uv, and nothing else but the system's."""

    root: Path
    calls_file: Path
    environ: dict[str, str]

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "start-dev", *arguments],
            cwd="/",
            env=self.environ | extra,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        """What was run since the last time."""
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


SET_UP = ["uv venv --quiet", "uv pip install"]
RUFF = ["ruff check . dev=0", "ruff format --check . dev=0"]
MYPY = ["mypy narcore api narmount narserve tests deploy start-dev dev=0"]


def test_every_check_runs_in_order_and_the_set_up_once(command: Command) -> None:
    first = command.run("test", "-k", "a b", "tests/x")
    assert first.returncode == 0, first.stderr
    assert command.calls() == [*SET_UP, *RUFF, *MYPY, "pytest -k a b tests/x dev=1"]
    assert [line for line in first.stdout.splitlines() if line.startswith("$")] == [
        "$ ruff check .",
        "$ ruff format --check .",
        "$ mypy narcore api narmount narserve tests deploy start-dev",
        "$ pytest -k 'a b' tests/x",
    ]
    assert command.run("test").returncode == 0
    assert command.calls() == [*RUFF, *MYPY, "pytest  dev=1"]


def test_the_first_failure_ends_the_checks(command: Command) -> None:
    ended = command.run("test", FAIL_AT="mypy")
    assert ended.returncode == 3
    assert command.calls() == [*SET_UP, *RUFF, *MYPY]
    assert ended.stderr == "start-dev: mypy narcore api narmount narserve tests deploy start-dev failed with status 3\n"


def test_a_set_up_that_was_interrupted_begins_anew(command: Command) -> None:
    fail = Path(f"{command.calls_file}.fail")
    fail.touch()
    ended = command.run("test")
    assert ended.returncode == 1
    assert "set-up failed at: " in ended.stderr
    assert command.calls() == SET_UP
    (command.root / ".venv" / "half").touch()

    fail.unlink()
    assert command.run("test").returncode == 0
    assert command.calls()[:2] == SET_UP
    assert not (command.root / ".venv" / "half").exists()


def test_new_requirements_are_installed_and_a_moved_checkout_starts_over(command: Command) -> None:
    command.run("test")
    with (command.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    command.calls()
    command.run("test")
    assert command.calls()[:2] == ["uv pip install", RUFF[0]]

    command.root = command.root.rename(command.root.with_name("moved"))
    command.run("test")
    assert command.calls()[:2] == SET_UP


def test_it_serves(command: Command, tmp_path: Path) -> None:
    start_dev = str(command.root / "start-dev")
    with running(Path("/"), tmp_path / "log", command.environ, start_dev) as server:
        assert server.get("/x")[2] == "answer 0 /x"
        assert server.get("/favicon.svg")[1]["content-type"].startswith("image/svg+xml")
    assert server.process.returncode == 0


def test_help_teaches_and_anything_else_is_an_error_without_a_set_up(command: Command) -> None:
    helped, refused = command.run("--help"), command.run("serve", "--fast")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert all(word in helped.stdout for word in ("./start-dev test", "PORT", "HTTP_ADDR", "NAR_CACHE_URL"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"start-dev: serve --fast: no such command\n\n{helped.stdout}"
    assert command.calls() == []


def test_the_checkout_of_another_user_is_no_traceback(command: Command) -> None:
    command.run("test")
    hidden = command.root / ".venv/bin"
    hidden.chmod(0)
    no_power = "-dac_override,-dac_read_search"  # with it, root may look into everything
    as_anybody = ["setpriv", f"--bounding-set={no_power}", f"--inh-caps={no_power}"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*as_anybody, command.root / "start-dev"],
        env=command.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    hidden.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr == (
        f"start-dev: {hidden}/python: Permission denied; is this checkout, or its .venv, another user's?\n"
    )


def test_an_old_python_is_passed_over(command: Command, tmp_path: Path) -> None:
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
