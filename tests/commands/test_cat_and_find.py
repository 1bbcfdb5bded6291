"""``cat`` prints bytes, ``find`` prints names that ``cat`` accepts; both follow links into other store paths."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narserve.commands.find import Pattern
from tests.builders import Tree, binary_cache, link, store_path
from tests.commands.running import PROGRAM, InProcess, environment, program, stored
from tests.e2e import links, trees
from tests.e2e.fronts import Front
from tests.e2e.nixcaches import NixCaches


def target_file(caches: NixCaches, outcome: links.Outcome) -> Path | None:
    """Return the file that a link leads to, or None if the target is not a file in the caches."""
    match outcome:
        case links.Inside(path):
            place = caches.tree(links.LINKS_NAME) / os.fsdecode(path)
        case links.Elsewhere(path) if path.startswith(links.store_path(links.HELLO)):
            place = Path(str(caches.tree(links.HELLO)) + path.removeprefix(links.store_path(links.HELLO)))
        case _:
            return None
    return place if place.is_file() else None


@pytest.mark.parametrize("by", ["store", "instance"])
def test_links_are_followed(cli: InProcess, caches: NixCaches, instance: Front, by: str) -> None:
    cli.use(caches.cache("zstd"))
    path = caches.store_paths[links.LINKS_NAME]
    for name, outcome in links.LINKS.items():
        done = cli("cat", (instance.url if by == "instance" else "") + f"{path}/{name.decode()}")
        expected = target_file(caches, outcome)
        if expected is None:
            assert (done.code, done.out, len(done.err.splitlines())) == (1, b"", 1), name
        else:
            assert (done.code, done.out, done.err) == (0, expected.read_bytes(), ""), name


def test_a_loop_of_links_between_store_paths_is_an_error(cli: InProcess, tmp_path: Path) -> None:
    chain: dict[str, Tree] = {f"n{number}": link(str(store_path(f"n{number + 1}"))) for number in range(5)}
    loop: dict[str, Tree] = {"p": link(f"{store_path('q')}/x"), "q": {"x": link(f"../{store_path('p').base_name}")}}
    cli.use(stored(tmp_path / "store", binary_cache({**chain, "n5": b"the end", **loop})))
    assert cli.ok("cat", str(store_path("n0"))).out == b"the end"
    done = cli("cat", str(store_path("p")))
    assert (done.code, "too many links" in done.err) == (1, True)


def test_every_odd_name_can_be_found_and_read(cli: InProcess, caches: NixCaches, instance: Front) -> None:
    cli.use(caches.cache("zstd"))
    for path in (caches.store_paths[trees.NAMES_NAME], instance.url + caches.store_paths[trees.NAMES_NAME]):
        names = cli.ok("find", "-0", "-t", "f", path, "*").out.decode("utf-8", "surrogateescape").split("\0")[:-1]
        files = [entry for entry in caches.entries(trees.NAMES_NAME) if entry.kind == "regular"]
        assert len(names) == len(files)
        together = cli.ok("cat", *names).out
        assert together == b"".join(entry.source.read_bytes() for entry in files)


def test_binary_files_are_unchanged_and_a_missing_file_does_not_stop_the_others(caches: NixCaches) -> None:
    settings = {"NAR_CACHE_URL": caches.cache("xz-blocks").as_uri(), "NAR_CACHE_DIR": "off"}
    path = caches.store_paths[trees.BIG_NAME]
    done = program("cat", f"{path}/later.bin", f"{path}/nope", f"{path}", f"{path}/z-last.txt", settings=settings)
    assert done.out == (caches.tree(trees.BIG_NAME) / "later.bin").read_bytes() + b"behind it\n"
    assert done.code == 1
    assert [line.split("; ")[0] for line in done.err.splitlines()] == [
        f"nar-serve: {path.rpartition('/')[2]} has no 'nope'",
        f"nar-serve: {path} is a directory, not a file",
    ]


def test_a_closed_pipe_ends_the_command_silently(caches: NixCaches) -> None:
    settings = {"NAR_CACHE_URL": caches.cache("none").as_uri(), "NAR_CACHE_DIR": "off"}
    commands: list[tuple[str, ...]] = [
        ("cat", f"{caches.store_paths[trees.BIG_NAME]}/data.bin"),
        ("ls", "-R", caches.store_paths[trees.STDLIB_NAME]),
    ]
    for command in commands:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [str(PROGRAM), *command], env=environment(settings), stdout=writer, stderr=subprocess.PIPE
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


def test_a_full_disk_is_reported_once(caches: NixCaches) -> None:
    settings = {"NAR_CACHE_URL": caches.cache("none").as_uri(), "NAR_CACHE_DIR": "off"}
    with Path("/dev/full").open("wb") as full:
        command = [str(PROGRAM), "cat", f"{caches.store_paths[links.HELLO]}/bin/hello"]
        done = subprocess.run(command, env=environment(settings), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert done.stderr == b"nar-serve: No space left on device; free some space, and run the same command again\n"


# --- find


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("*.so", "lib/x.so", True),
        ("*.so", "x.so", True),
        ("*.so", "x.so.1", False),
        ("x", "x/y", False),
        ("lib/*", "lib/x", True),
        ("lib/*", "lib/x/y", False),
        ("lib/*", "usr/lib/x", False),
        ("/lib/*", "lib/x", True),
        ("**/lib/*", "usr/lib/x", True),
        ("**/lib/*", "lib/x", True),
        ("share/**", "share/a/b", True),
        ("share/**", "share", True),
        ("share/**/*.gz", "share/x.gz", True),
        ("share/**/*.gz", "share/a/b/x.gz", True),
        ("share/**/*.gz", "x.gz", False),
        ("a/**/b/**/c", "a/b/b/x/c", True),
        ("a/**/b/**/c", "a/x/c", False),
        ("[ab]?", "b1", True),
        ("[!ab]?", "b1", False),
        ("**", "any/thing", True),
        ("\udcff*", "\udcff\n.", True),
    ],
)
def test_globs_match_as_documented(glob: str, path: str, matches: bool) -> None:
    assert Pattern(glob).matches(tuple(path.split("/"))) is matches


NAMES = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=5).map(tuple)


@given(NAMES, st.lists(st.sampled_from(["a", "b*", "?", "**"]), min_size=2, max_size=5))
def test_a_glob_matches_if_one_of_its_expansions_does(names: tuple[str, ...], segments: list[str]) -> None:
    """Each ** stands for any number of segments; this tries all numbers up to the number of names."""

    def expanded(rest: list[str], limit: int) -> list[list[str]]:
        if not rest:
            return [[]]
        heads = [["*"] * count for count in range(limit + 1)] if rest[0] == "**" else [[rest[0]]]
        return [head + tail for head in heads for tail in expanded(rest[1:], limit)]

    expected = any(
        len(each) == len(names)
        and all(Pattern(segment).matches((name,)) for segment, name in zip(each, names, strict=True))
        for each in expanded(segments, len(names))
    )
    assert Pattern("/".join(segments)).matches(names) is expected


@pytest.mark.parametrize("by", ["store", "instance"])
def test_find_closure_searches_the_references(cli: InProcess, caches: NixCaches, instance: Front, by: str) -> None:
    if by == "store":
        cli.use(caches.cache("zstd"))
    home = instance.url if by == "instance" else ""
    own, hello = (home + caches.store_paths[name] for name in (links.LINKS_NAME, links.HELLO))
    assert cli("find", own, "hello*").code == 1
    assert cli.ok("find", "--closure", "-t", "f", own, "h*o").lines == [f"{hello}/bin/hello"]
    assert cli.ok("find", "--closure", "-t", "l", own, "*i").lines == [f"{hello}/bin/hi"]
    assert cli.ok("find", f"{own}/sub", "inner*").lines == [
        f"{own}/sub/deep/deeper/inner-3.txt",
        f"{own}/sub/deep/inner-2.txt",
        f"{own}/sub/inner.txt",
    ]
    assert cli.ok("find", f"{own}/to-dir", "*/deeper").lines == [f"{own}/sub/deep/deeper"]


def test_a_missing_reference_is_reported_and_the_rest_is_searched(
    cli: InProcess, caches: NixCaches, tmp_path: Path
) -> None:
    path = caches.store_paths[links.LINKS_NAME]
    for name in caches.cache("zstd").glob(f"{caches.hash_part(links.LINKS_NAME)}*"):
        (tmp_path / name.name).write_bytes(name.read_bytes())
    cli.use(tmp_path)
    done = cli("find", "--closure", path, "inner.txt")
    assert (done.code, done.lines) == (1, [f"{path}/sub/inner.txt"])
    assert f"no store has a path /nix/store/{caches.hash_part(links.HELLO)}" in done.err
