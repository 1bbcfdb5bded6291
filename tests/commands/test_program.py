"""The program as users see it: help, exit codes, one line per error, progress bars only on terminals."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from narcore.errors import StorePathError
from narserve.commands.cache import cache
from narserve.program import MODULES, load
from narserve.session.target import Target
from tests import ROOT
from tests.builders import hash_part
from tests.commands.running import PROGRAM, InProcess, at_terminal, environment, program
from tests.e2e import trees
from tests.e2e.fronts import Front
from tests.e2e.links import HELLO
from tests.e2e.nixcaches import NixCaches

HASH = hash_part("x")
COMMANDS: dict[tuple[str, ...], click.Command] = {(name,): load(name) for name in MODULES}
COMMANDS |= {("cache", name): command for name, command in cache.commands.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_a_usage_an_example_and_all_options(cli: InProcess, command: tuple[str, ...]) -> None:
    shown = cli.ok(*command, "--help").out.decode()
    assert shown.startswith(f"Usage: nar-serve {' '.join(command)}")
    assert f"nar-serve {command[0]} " in shown.partition("Options:")[0]
    for parameter in COMMANDS[command].params:
        assert not isinstance(parameter, click.Option) or parameter.help


def test_help_of_the_program_lists_commands_settings_and_exit_codes(cli: InProcess) -> None:
    shown = cli.ok("--help").out.decode()
    for word in (
        *MODULES,
        "Exit codes",
        "NAR_CACHE_URL",
        "NAR_TRUSTED_PUBLIC_KEYS",
        "_NAR_SERVE_COMPLETE",
        "130",
    ):
        assert word in shown
    assert "..." not in shown.partition("Commands:")[2].partition("Settings (")[0]  # no truncated help texts
    assert cli("ls", "-h").out == cli("ls", "--help").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ls"], 2, "Missing argument 'PATH...'; try 'nar-serve ls --help'"),
        (["ls", "hello"], 2, "'hello' is not a store path"),
        (["ls", "/etc/passwd"], 2, "'/etc/passwd' is not a store path"),
        (["ls", "http://localhost/x"], 2, "the form http://localhost/nix/store/<hash>-<name>"),
        (["ls", "http://[/"], 2, "is not a valid URL"),
        (["lss"], 2, "No such command 'lss'"),
        (["ls", "--sture", "x", HASH], 2, "--store"),
        (["find", HASH, "*", "-t", "x"], 2, "'x' is not one of"),
        (["info", f"http://127.0.0.1:1/nix/store/{HASH}"], 3, "127.0.0.1:1"),
        (["ls", HASH], 1, "no store has a path"),
        (["ls", "--store", "cache.example.org", HASH], 2, "begins with https://"),
        (["ls", "--store", "gopher://x", HASH], 2, "not a store URL"),
        (["ls", "--store", "http://127.0.0.1:1", HASH], 3, "127.0.0.1:1"),
        (["ls", f"http://127.0.0.1:1/nix/store/{HASH}"], 3, "127.0.0.1:1"),
        (["get", HASH, "no/where"], 1, "no store has a path"),
    ],
)
def test_every_error_is_one_line_with_its_code(
    cli: InProcess, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "no-cache").mkdir()
    done = cli(*arguments)
    assert (done.code, done.out) == (code, b"")
    [line] = done.err.splitlines()
    assert line.startswith("nar-serve: ")
    assert message in line
    assert len(line) < 400


def test_the_settings_of_the_server_apply(cli: InProcess, tmp_path: Path) -> None:
    (tmp_path / "no-cache").mkdir()
    cli.use(NAR_VERIFY="maybe")
    done = cli("ls", HASH)
    assert (done.code, done.err.startswith("nar-serve: NAR_VERIFY='maybe'")) == (2, True)
    cli.use(NAR_VERIFY="stream", NAR_CASHE_URL="x")
    assert "did you mean NAR_CACHE_URL?" in cli("ls", HASH).err.splitlines()[0]


def test_a_directory_is_accepted_as_a_store(cli: InProcess, caches: NixCaches, tmp_path: Path) -> None:
    Path("a cache %41").symlink_to(caches.cache("zstd"))
    assert cli.ok("ls", "--store", "a cache %41", caches.store_paths[HELLO]).lines == ["./bin", "./lib", "./share"]
    assert cli.ok("ls", "--store", tmp_path / "work", "--store", caches.cache("zstd"), caches.hash_part(HELLO)).out


def test_names_in_errors_can_t_move_the_cursor(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("zstd"))
    done = cli("cat", f"{caches.store_paths[HELLO]}/\x1b[2J\n\u202ex")
    assert len(done.err.splitlines()) == 1
    assert done.err.rstrip("\n").isprintable()


def test_the_installed_program_runs(caches: NixCaches, tmp_path: Path) -> None:
    settings = {"NAR_CACHE_URL": caches.cache("zstd").as_uri(), "NAR_CACHE_DIR": str(tmp_path / "nars")}
    assert program("--version", settings={}).out.startswith(b"nar-serve 0.")
    assert program(settings={}).code == 2
    done = program("cat", f"{caches.store_paths[HELLO]}/bin/hello", settings=settings)
    assert (done.code, done.out, done.err) == (0, trees.SCRIPT, "")
    as_module = [sys.executable, "-m", "narserve", "ls", caches.store_paths[HELLO]]
    assert subprocess.run(as_module, env=environment(settings), check=True, stdout=subprocess.PIPE).stdout.startswith(
        b"./bin\n"
    )


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_odd_names_survive_any_locale(caches: NixCaches, locale: str) -> None:
    settings = {"NAR_CACHE_URL": caches.cache("zstd").as_uri(), "NAR_CACHE_DIR": "off", "LC_ALL": locale}
    path = caches.store_paths[trees.NAMES_NAME].encode()
    command = [str(PROGRAM).encode(), b"cat", path + b"/caf\xe9", path + b"/caf\xc3\xa9"]
    done = subprocess.run(command, env=environment(settings), check=True, stdout=subprocess.PIPE)
    assert done.stdout == b"contents of caf\xe9contents of caf\xc3\xa9"


def test_a_progress_bar_appears_only_on_a_terminal(caches: NixCaches, tmp_path: Path) -> None:
    settings = {"NAR_CACHE_URL": caches.cache("zstd").as_uri(), "NAR_CACHE_DIR": "off"}
    path = caches.store_paths[trees.BIG_NAME]
    shown = at_terminal("get", path, "one", settings=settings, cwd=tmp_path)
    assert (shown.code, b"100%" in shown.out) == (0, True)
    assert re.search(rb"  (\d+ MiB) of \1", shown.out)
    assert shown.out.endswith(b"one\r\n")
    piped = program("get", path, "two", settings=settings, cwd=tmp_path)
    assert (piped.code, piped.out, piped.err) == (0, b"two\n", "")


def test_completion_works_in_bash(caches: NixCaches) -> None:
    script = program(settings={"_NAR_SERVE_COMPLETE": "bash_source"}).out
    assert b"complete -o nosort -F" in script
    words = {"_NAR_SERVE_COMPLETE": "bash_complete", "COMP_WORDS": "nar-serve cache v", "COMP_CWORD": "2"}
    assert program(settings=words).out == b"plain,verify\n"


def test_the_wsgi_entry_does_not_import_narserve() -> None:
    code = "import sys, api.index; sys.exit(any(name.startswith('narserve') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment({}), check=False).returncode == 0


def test_an_error_of_an_instance_is_shown_in_its_own_words(cli: InProcess, instance: Front) -> None:
    done = cli("ls", f"{instance.url}/nix/store/{HASH}")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "None of the configured binary caches has it" in done.err


# --- arguments


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (HASH, Target(None, HASH, "", "")),
        (f"{HASH}-n/a//b/", Target(None, HASH, "n", "/a/b/")),
        (f"/nix/store/{HASH}-n.1", Target("/nix/store", HASH, "n.1", "")),
        (f"//gnu/store/{HASH}/x", Target("/gnu/store", HASH, "", "/x")),
        (
            f"http://h/nix/store/{HASH}-n/%41%2f%ff?list#x",
            Target("/nix/store", HASH, "n", "/A/\udcff", "http://h/nix/store"),
        ),
        (
            f"HTTPS://u:p@h:1/prod/nix/store/{HASH}",
            Target("/nix/store", HASH, "", "", "https://u:p@h:1/prod/nix/store"),
        ),
        (f"http://h/p/unpack/gnu/store/{HASH}", Target("/gnu/store", HASH, "", "", "http://h/p/unpack/gnu/store")),
        (f"http://h/gnu/store/{HASH}/{HASH}", Target("/gnu/store", HASH, "", f"/{HASH}", "http://h/gnu/store")),
    ],
)
def test_targets_are_parsed(text: str, target: Target) -> None:
    assert Target.parse(text) == target


@pytest.mark.parametrize(
    "text", ["", "x", HASH[:-1], HASH + "x", f"nix/store/{HASH}", f"{HASH[:-1]}e", f"http://h/{HASH}", "file:///x"]
)
def test_other_texts_are_not_targets(text: str) -> None:
    with pytest.raises(StorePathError):
        Target.parse(text)
