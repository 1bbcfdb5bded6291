"""``ls`` prints the same as ``nix store ls``, from a cache and from an instance; odd names are harmless on a terminal."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from narcore.formats.names import to_bytes
from narserve.terminal.output import quoted
from tests.commands.running import InProcess, at_terminal
from tests.e2e import trees
from tests.e2e.fronts import Front
from tests.e2e.links import HELLO, LINKS_NAME
from tests.e2e.nixcaches import NixCaches, parse_listing

CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")


@pytest.fixture(scope="session")
def nix_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("nix")
    (home / "nix.conf").write_text("experimental-features = nix-command\nsubstituters =\n")
    return home


def nix_ls(home: Path, cache: Path, *arguments: str) -> bytes:
    command = ["nix", "store", "ls", "--store", cache.as_uri(), *arguments]
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "NIX_CONF_DIR": str(home), "NIX_REMOTE": f"local?root={home}"}
    return subprocess.run(command, env=env, check=True, capture_output=True).stdout


def listed(caches: NixCaches, name: str) -> bytes:
    """Return the output of Nix for a directory, derived from the source tree."""
    modes = {"directory": b"dr-xr-xr-x", "symlink": b"lrwxrwxrwx", "regular": b"-r--r--r--"}
    lines = []
    for entry in caches.entries(name):
        size = entry.source.lstat().st_size if entry.kind == "regular" else 0
        target = b" -> " + entry.target if entry.target else b""
        assert not entry.executable
        lines.append(b"%s %20d ./%s%s\n" % (modes[entry.kind], size, entry.path, target))
    return b"".join(lines[1:])


@pytest.mark.parametrize("name", trees.SPECS)
def test_the_output_equals_that_of_nix(
    cli: InProcess, caches: NixCaches, instance: Front, nix_home: Path, name: str
) -> None:
    cli.use(caches.cache("xz"))
    path = caches.store_paths[name]
    # Nix 2.8 uses names as format strings, and fails on the first name that contains a %.
    odd = name == trees.NAMES_NAME
    expected = listed(caches, name) if odd else nix_ls(nix_home, caches.cache("none"), "-lR", path)
    assert cli.ok("ls", "-lR", path).out == expected
    url = instance.url + path.replace("?", "%3F")
    assert cli.ok("ls", "-lR", url).out == expected


@pytest.mark.parametrize("options", [[], ["-l"], ["-R"], ["-d"], ["-ld"], ["-lR"], ["-dR"]])
@pytest.mark.parametrize("inside", ["", "/sub", "/file.txt", "/to-dir", "/dangling"])
def test_options_mean_the_same_as_in_nix(
    cli: InProcess, caches: NixCaches, nix_home: Path, options: list[str], inside: str
) -> None:
    cli.use(caches.cache("xz"))
    path = caches.store_paths[LINKS_NAME] + inside
    assert cli.ok("ls", *options, path).out == nix_ls(nix_home, caches.cache("none"), *options, path)


def test_a_hash_is_enough_and_a_slash_follows_links(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("xz"))
    hash_part = caches.hash_part(LINKS_NAME)
    sub = cli.ok("ls", "-l", f"{hash_part}/sub").out
    assert cli.ok("ls", "-l", f"{hash_part}/to-dir/").out == sub
    assert cli.ok("ls", "-l", f"/nix/store//{hash_part}-by-another-name//to-dir//").out == sub
    assert cli.ok("ls", f"{hash_part}/other-dir/").lines == ["./doc", "./man"]  # in another store path
    assert cli.ok("ls", f"{hash_part}/other-root/bin").lines == ["./hello", "./hi"]


def test_a_hash_is_enough_for_another_store_dir(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("zstd"), caches.cache("gnu"))
    assert cli.ok("ls", caches.gnu_store_path[len("/gnu/store/") :][:32]).lines == [
        "./absolute",
        "./bin",
        "./other",
        "./share",
    ]
    assert cli.ok("ls", caches.gnu_store_path + "/bin").lines == ["./x"]


def test_json_output_is_the_listing(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("xz"))
    path = caches.store_paths[HELLO]
    done = cli.ok("ls", "--json", "-R", path)
    assert parse_listing(done.out) == caches.listing(HELLO)
    assert json.loads(cli.ok("ls", "--json", path + "/bin/hi").out)["root"] == {"type": "symlink", "target": "hello"}
    assert json.loads(cli.ok("ls", "--json", path).out)["root"]["entries"]["bin"] == {"type": "directory"}


def test_all_paths_are_listed_and_the_worst_exit_code_counts(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("xz"))
    path = caches.store_paths[HELLO]
    done = cli("ls", f"{path}/nope", f"{path}/bin", f"{path}/bin/hello/x")
    assert done.code == 1
    assert done.lines == [f"{path}/bin:", "./hello", "./hi"]
    assert [line.count("nar-serve: ") for line in done.err.splitlines()] == [1, 1]
    assert "has no 'nope'" in done.err
    assert "is a file" in done.err


def test_names_on_a_terminal_are_harmless_and_can_be_pasted(caches: NixCaches) -> None:
    settings = {"NAR_CACHE_URL": caches.cache("zstd").as_uri(), "NAR_CACHE_DIR": "off"}
    shown = at_terminal("ls", caches.store_paths[trees.NAMES_NAME], settings=settings)
    assert shown.code == 0
    assert not CONTROL.search(re.sub(rb"[\xc2-\xf4][\x80-\xbf]+", b"", shown.out.replace(b"\r\n", b"")))
    assert "\u202e" not in shown.out.decode()
    lines = shown.out.decode().replace("\r\n", "\n").splitlines()
    odd = [line for line in lines if line.startswith("$'")]
    script = "printf '%s\\0' " + " ".join(odd)
    pasted = subprocess.run(["bash", "-c", script], check=True, capture_output=True, env={"LC_ALL": "C.UTF-8"}).stdout
    plain = {line.encode() for line in lines} - {line.encode() for line in odd}
    names = {b"./" + entry.path for entry in caches.entries(trees.NAMES_NAME) if entry.path and b"/" not in entry.path}
    assert plain | set(pasted.split(b"\0")) - {b""} == names
    assert len(odd) > 10


def test_a_shell_reads_quoted_names_as_the_original_names() -> None:
    names = [
        "a\nb",
        "it's\tx",
        "back\\slash\n",
        "\\n\n",
        "\udcff'\\",
        "\u202e'",
        "\x1b[2J",
        "\U000e0001$x `y` \r",
        "\x7f\x80",
        "\udcff1",
    ]
    script = "printf '%s\\0' " + " ".join(map(quoted, names))
    pasted = subprocess.run(["bash", "-c", script], check=True, capture_output=True, env={"LC_ALL": "C.UTF-8"}).stdout
    assert pasted.split(b"\0")[:-1] == [to_bytes(name) for name in names]
    assert all(quoted(name).isprintable() for name in names)
    assert quoted("pl ain's") == "pl ain's"
