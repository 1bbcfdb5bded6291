"""``cache``: prints the right numbers, removes damaged archives, enforces the limit, and asks before it removes everything."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from narcore.cache.layout import FileKey, NarKey
from narcore.cache.narcache import NarCache
from tests.builders import binary_cache, hash_part
from tests.commands.running import InProcess, at_terminal, stored

SIZE = 300_000


@pytest.fixture
def nars(cli: InProcess, tmp_path: Path) -> list[Path]:
    """Three cached NARs, ordered by their last use."""
    names = ("one", "two", "three")
    cli.use(stored(tmp_path / "store", binary_cache({name: name.encode() * (SIZE // 3) for name in names})))
    found: list[Path] = []
    for name in names:
        cli.ok("cat", hash_part(name))
        found += [path for path in Path(os.environ["NAR_CACHE_DIR"]).glob("*.nar") if path not in found]
    for number, path in enumerate(found):
        os.utime(path, ns=(10**18 + number, path.stat().st_mtime_ns))
    assert len(found) == 3
    return found


def size(path: Path) -> int:
    """Return the size of a NAR together with its listing."""
    return path.stat().st_size + path.with_suffix(".listing").stat().st_size


def test_stat_shows_size_limit_and_counters(cli: InProcess, nars: list[Path]) -> None:
    cli.ok("cat", hash_part("one"))
    found = json.loads(cli.ok("cache", "stat", "--json").out)
    assert (found["directory"], found["entries"]) == (os.environ["NAR_CACHE_DIR"], 3)
    assert found["bytes"] == sum(map(size, nars))
    assert (found["miss"], found["fill"], found["failure"]) == (3, 3, 0)
    assert found["hit"] >= 1
    cli.use(NAR_CACHE_SIZE="5G")
    rows = dict(line.split(maxsplit=1) for line in cli.ok("cache", "stat").lines)
    assert rows["size"] == "1.0 MiB of 5.0 GiB"
    assert rows["entries"] == "3"


def test_verify_removes_damaged_archives_and_prints_them(cli: InProcess, nars: list[Path]) -> None:
    assert cli.ok("cache", "verify").lines == ["3 good, 0 removed"]
    times = nars[1].stat()
    nars[1].chmod(0o600)
    with nars[1].open("r+b") as file:
        file.seek(200_000)
        file.write(b"!")
    os.utime(nars[1], ns=(times.st_atime_ns, times.st_mtime_ns))  # as if the disk had damaged it
    done = cli("cache", "verify")
    assert done.lines == [f"{nars[1]}: damaged, removed", "2 good, 1 removed"]
    assert done.code == 1
    assert [path.exists() for path in nars] == [True, False, True]


def unpack_from(nar: Path) -> Path:
    """Unpack a file from the NAR into the cache. Returns its path."""
    with closing(NarCache(nar.parent, size=lambda _: 1 << 30, max_fills=1)) as cache:
        opened = cache.open(NarKey(nar.stem, nar.stat().st_size))
        assert opened is not None
        with closing(opened):
            os.close(cache.open_unpacked(FileKey(nar.stem, 8, 1000), opened))
    return nar.with_name(f"{nar.stem}.8.1000.file")


def test_unpacked_files_are_counted_verified_and_cleared(cli: InProcess, nars: list[Path]) -> None:
    paths = [unpack_from(nar) for nar in nars[:2]]
    found = json.loads(cli.ok("cache", "stat", "--json").out)
    assert (found["entries"], found["files"]) == (3, 2)
    assert found["bytes"] == sum(map(size, nars)) + 2000
    rows = dict(line.split(maxsplit=1) for line in cli.ok("cache", "stat").lines)
    assert (rows["entries"], rows["unpacked"].split()[:2]) == ("3", ["2", "files"])
    assert cli.ok("cache", "verify").lines == ["5 good, 0 removed"]
    times = paths[0].stat()
    paths[0].chmod(0o600)
    paths[0].write_bytes(bytes(1000))
    os.utime(paths[0], ns=(times.st_atime_ns, times.st_mtime_ns))  # as if the disk had damaged it
    done = cli("cache", "verify")
    assert (done.code, done.lines) == (1, [f"{paths[0]}: damaged, removed", "4 good, 1 removed"])
    assert cli.ok("cache", "clear", "--yes").lines[0].startswith("removed 3 archives and 1 unpacked file, ")
    assert not paths[1].exists()


def test_gc_enforces_the_limit_and_removes_leftovers(cli: InProcess, nars: list[Path]) -> None:
    leftover = nars[0].with_name("0" * 52 + ".1000.part")
    leftover.write_bytes(b"left by a crash")
    cli.use(NAR_CACHE_SIZE=str(sum(map(size, nars[1:]))))
    done = cli.ok("cache", "gc")
    assert done.lines[0].startswith("removed 1 archive, ")
    assert [path.exists() for path in (*nars, leftover)] == [False, True, True, False]
    assert cli.ok("cache", "gc").lines == ["removed 0 archives, 0 B"]


def test_clear_asks_for_confirmation(cli: InProcess, nars: list[Path]) -> None:
    settings = {"NAR_CACHE_DIR": str(nars[0].parent)}
    asked = at_terminal("cache", "clear", settings=settings, typed=b"n\n")
    assert (asked.code, b"Remove 3 archives (1.0 MiB) from" in asked.out) == (1, True)
    assert all(path.exists() for path in nars)
    asked = at_terminal("cache", "clear", settings=settings, typed=b"y\n")
    assert (asked.code, b"removed 3 archives" in asked.out) == (0, True)
    assert not any(path.exists() for path in nars)


def test_clear_without_a_terminal_requires_yes(
    cli: InProcess, nars: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/null").open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        refused = cli("cache", "clear")
    assert (refused.code, "--yes" in refused.err, nars[0].exists()) == (2, True, True)
    assert cli.ok("cache", "clear", "--yes", "--cache-dir", nars[0].parent).lines[0].startswith("removed 3 archives")
    assert not [*nars[0].parent.glob("*.nar")]


def test_a_missing_cache_is_a_one_line_error(cli: InProcess, tmp_path: Path) -> None:
    for arguments in (("--cache-dir", "off"), ("--cache-dir", str(tmp_path / "none"))):
        done = cli("cache", "stat", *arguments)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, b"", 1)
    assert not (tmp_path / "none").exists()
