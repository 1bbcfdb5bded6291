"""Unpacked files of cached NARs: they have the right bytes, respect the limit, and leave no leftovers."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from narcore.cache import eviction, narcache, reserve, unpacked
from narcore.cache.eviction import make_room
from narcore.cache.layout import DURABLE, THIS_BOOT, NarKey, is_verified
from narcore.cache.narcache import NarCache
from narcore.cache.upkeep import verify
from narcore.errors import CacheFailure
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.nar.parser import parse_nar
from narcore.nars.opennar import OpenNar
from tests import builders
from tests.builders import Tree, exe
from tests.cache.conftest import MakeCache
from tests.cache.support import add_to_cache, cached_bytes, key_of, names, nar_of, until

TOOL, NOTE = os.urandom(500_000), b"some text\n"
TREE: Mapping[str, Tree] = {"a": b"", "note": NOTE, "tool": exe(TOOL), "z": b""}
NAR = builders.nar(TREE)
KEY = key_of(NAR)
LISTING = NarListing.from_events(parse_nar([NAR], contents=False))


def node(name: str) -> Node:
    found = LISTING.child(LISTING.root, name)
    assert found is not None
    return found


@pytest.fixture
def opened() -> Iterator[Callable[[NarCache, NarKey], OpenNar]]:
    """Opens cached NARs, which are closed at the end of the test."""
    found: list[OpenNar] = []

    def open_(cache: NarCache, key: NarKey) -> OpenNar:
        nar = cache.open(key)
        assert nar is not None
        found.append(OpenNar(cache, key, nar))
        return found[-1]

    yield open_
    for each in found:
        each.close()


Opened = Callable[[NarCache, NarKey], OpenNar]


@pytest.fixture
def nar(cache: NarCache, opened: Opened) -> OpenNar:
    add_to_cache(cache, NAR)
    return opened(cache, KEY)


def contents(fd: int) -> bytes:
    """Read all of the file, and close it."""
    with os.fdopen(fd, "rb") as file:
        return file.read()


def path_of(directory: Path, name: str = "tool") -> Path:
    return directory / f"{KEY.digits}.{node(name).nar_offset}.{node(name).size}.file"


def files(directory: Path) -> set[str]:
    return {name for name in names(directory) if ".file" in name}


@pytest.fixture
def unpackings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with one item per file that was unpacked."""
    found: list[int] = []
    unpack = unpacked.unpack

    def counted(*args: object, **more: object) -> None:
        found.append(1)
        unpack(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(unpacked, "unpack", counted)
    return found


def test_file_has_its_contents_and_is_unpacked_once(nar: OpenNar, directory: Path, unpackings: list[int]) -> None:
    for name, expected in (("a", b""), ("note", NOTE), ("tool", TOOL), ("z", b"")) * 2:
        fd = nar.open_unpacked(node(name))
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert not os.get_inheritable(fd)
        assert contents(fd) == expected
        status = path_of(directory, name).stat()
        assert is_verified(status)
        assert status.st_mode == stat.S_IFREG | 0o444
    assert len(unpackings) == 4
    assert len(files(directory)) == 4


def test_eviction_of_an_open_file_can_be_detected(nar: OpenNar, directory: Path) -> None:
    with os.fdopen(nar.open_unpacked(node("tool"))) as file:  # while it is open, its inode is not reused
        place, path = nar.unpacked_file(node("tool"), file.fileno()), path_of(directory)
        assert not place.is_evicted()
        os.utime(path, ns=(1000, path.stat().st_mtime_ns))
        place.touch()
        assert path.stat().st_atime > 1_000_000
        assert is_verified(path.stat())
        path.chmod(0o600)
        path.write_bytes(TOOL)
        assert place.is_evicted(), "the mark is lost"
        path.unlink()
        path.write_bytes(TOOL)
        os.utime(path, (1000, 2000))
        assert place.is_evicted(), "another file has replaced it"
        place.touch()
        assert path.stat().st_atime == 1000
        path.unlink()
        assert place.is_evicted()
        place.touch()
        assert not path.exists()


def test_node_that_is_not_a_file_in_the_nar_is_rejected(nar: OpenNar, directory: Path) -> None:
    for wrong in (LISTING.root, Node(1, Kind.REGULAR, "x", len(NAR), False, 8, "")):
        with pytest.raises(ValueError, match="in a NAR of"):
            nar.open_unpacked(wrong)
    assert files(directory) == set()


def test_wrong_listing_does_not_affect_other_files(nar: OpenNar) -> None:
    """The name of an unpacked file contains its range in the NAR, and the file has the bytes of that range."""
    wrong = Node(node("tool").index, Kind.REGULAR, "tool", 1000, True, node("tool").nar_offset, "")
    assert contents(nar.open_unpacked(wrong)) == TOOL[:1000]
    assert contents(nar.open_unpacked(node("tool"))) == TOOL


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(300_000)
        file.write(b"wrong")


def link_away(path: Path) -> None:
    path.rename(path.with_suffix(".x"))
    path.symlink_to(path.with_suffix(".x"))


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGED: dict[str, Callable[[Path], object]] = {
    "written to": overwrite,
    "cut": lambda path: os.truncate(path, 1000),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, 600_000),
    "deleted": lambda path: path.unlink(),
    "of another boot": lambda path: os.utime(path, (0, THIS_BOOT - 1)),
    "a link": link_away,
    "a pipe": make_pipe,
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_is_unpacked_again(nar: OpenNar, directory: Path, change: Callable[[Path], object]) -> None:
    os.close(nar.open_unpacked(node("tool")))
    path_of(directory).chmod(0o600)
    change(path_of(directory))
    assert contents(nar.open_unpacked(node("tool"))) == TOOL
    assert path_of(directory).read_bytes() == TOOL
    assert is_verified(path_of(directory).lstat())


def test_directory_with_the_name_of_the_file_is_an_error(nar: OpenNar, directory: Path) -> None:
    path_of(directory).mkdir()
    with pytest.raises(CacheFailure):
        nar.open_unpacked(node("tool"))
    assert files(directory) == {path_of(directory).name}


def test_file_of_an_evicted_nar_can_be_unpacked(nar: OpenNar, cache: NarCache, directory: Path) -> None:
    cache.clear()
    assert contents(nar.open_unpacked(node("tool"))) == TOOL


def test_file_of_a_changed_nar_is_not_unpacked(nar: OpenNar, directory: Path) -> None:
    path = directory / f"{KEY.digits}.nar"
    path.chmod(0o600)
    overwrite(path)
    with pytest.raises(CacheFailure):
        nar.open_unpacked(node("tool"))
    assert names(directory) == set()


def test_file_of_a_truncated_nar_is_not_unpacked(nar: OpenNar, directory: Path) -> None:
    path = directory / f"{KEY.digits}.nar"
    path.chmod(0o600)
    os.truncate(path, 1000)
    with pytest.raises(CacheFailure):
        nar.open_unpacked(node("tool"))
    assert names(directory) == set()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP])
def test_file_is_copied_if_the_kernel_can_not_copy_it(nar: OpenNar, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*args: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", fail)
    assert contents(nar.open_unpacked(node("tool"))) == TOOL


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_disk_error_leaves_no_file(nar: OpenNar, directory: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*args: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(CacheFailure):
        nar.open_unpacked(node("tool"))
    assert files(directory) == set()


def test_file_evicted_before_it_is_opened_is_unpacked_again_up_to_a_limit(
    nar: OpenNar, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = narcache.UNPACK_TRIES - 1
    unpack = unpacked.unpack

    def unpack_and_remove(*args: object, **more: object) -> None:
        nonlocal rounds
        unpack(*args, **more)  # type: ignore[arg-type]
        rounds -= 1
        if rounds:
            path_of(directory).unlink()

    monkeypatch.setattr(unpacked, "unpack", unpack_and_remove)
    assert contents(nar.open_unpacked(node("tool"))) == TOOL
    path_of(directory).unlink()
    rounds = 100
    with pytest.raises(CacheFailure, match="evicted"):
        nar.open_unpacked(node("tool"))


class TestRoom:
    def test_unpacked_file_counts_and_is_evicted_by_its_own_access_time(
        self, make_cache: MakeCache, opened: Opened, directory: Path
    ) -> None:
        cache = make_cache(1_300_000)
        add_to_cache(cache, NAR)
        first = opened(cache, KEY)
        other = add_to_cache(cache, nar_of(100_000, 1))
        os.close(first.open_unpacked(node("tool")))
        sizes = sum(path.stat().st_size for path in directory.iterdir() if not path.name.startswith("."))
        assert sum(entry.size for entry in cache.entries()) == sizes
        first.touch()
        opened(cache, other)  # so the unpacked file is the least recently used entry
        third = add_to_cache(cache, nar_of(300_000, 2))
        assert files(directory) == set()
        assert [cache.is_cached(key) for key in (KEY, other, third)] == [True, True, True]

    def test_unpacking_evicts_older_entries(self, make_cache: MakeCache, opened: Opened, directory: Path) -> None:
        events: list[str] = []
        cache = make_cache(1_300_000, trace=lambda event, fields: events.append(event))
        old = add_to_cache(cache, nar_of(700_000, 1))
        add_to_cache(cache, NAR)
        assert contents(opened(cache, KEY).open_unpacked(node("tool"))) == TOOL
        assert not cache.is_cached(old)
        assert events.count("cache.evict") == 1
        assert sum(entry.size for entry in cache.entries()) <= 1_300_000

    def test_use_updates_the_access_time(self, make_cache: MakeCache, opened: Opened, directory: Path) -> None:
        cache = make_cache()
        add_to_cache(cache, NAR)
        nar = opened(cache, KEY)
        for name in ("tool", "note"):
            os.close(nar.open_unpacked(node(name)))
            os.utime(path_of(directory, name), (1000, THIS_BOOT))
        os.close(nar.open_unpacked(node("tool")))
        assert cache.entries()[0].path(cache.layout) == path_of(directory, "note")
        assert path_of(directory).stat().st_atime > 1000

    @pytest.mark.parametrize("limit", [len(NAR) + 100_000, len(NAR) + 1000])
    def test_unpacking_never_evicts_its_own_nar(
        self, make_cache: MakeCache, opened: Opened, directory: Path, limit: int
    ) -> None:
        """Otherwise, if only one of them fits, the NAR would be fetched again and again."""
        cache = make_cache(limit)
        add_to_cache(cache, NAR)
        nar = opened(cache, KEY)
        with pytest.raises(CacheFailure, match="no room"):
            nar.open_unpacked(node("tool"))
        assert cache.is_cached(KEY)
        assert files(directory) == set()

    def test_file_that_is_being_unpacked_counts(
        self, make_cache: MakeCache, opened: Opened, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two files are unpacked at once, with room for one: the second does not take the room of the first."""
        cache = make_cache(2 * len(NAR) + 200_000)
        add_to_cache(cache, NAR)
        nar = opened(cache, KEY)
        copying, resume, copy = threading.Event(), threading.Event(), os.copy_file_range

        def slow(*args: int) -> int:
            copying.set()
            assert resume.wait(10)
            return copy(*args)

        monkeypatch.setattr(os, "copy_file_range", slow)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(nar.open_unpacked, node("tool"))
            assert copying.wait(10)
            try:
                with pytest.raises(CacheFailure):
                    nar.open_unpacked(Node(0, Kind.REGULAR, "x", 400_000, False, 100, ""))
            finally:
                resume.set()
            assert contents(first.result()) == TOOL
        assert files(directory) == {path_of(directory).name}

    def test_collect_and_clear_remove_unpacked_files(
        self, cache: NarCache, nar: OpenNar, make_cache: MakeCache, directory: Path
    ) -> None:
        os.close(nar.open_unpacked(node("tool")))
        os.utime(path_of(directory), (1000, THIS_BOOT))
        cache.close()  # releases its reservation, a share of its own limit, which is much larger
        (evicted,) = make_cache(600_000).collect()
        assert evicted.path(cache.layout) == path_of(directory)
        os.close(nar.open_unpacked(node("note")))
        assert len(cache.clear()) == 2
        assert names(directory) == set()


class TestVerify:
    def test_verify_compares_files_with_their_nar(self, cache: NarCache, nar: OpenNar, directory: Path) -> None:
        for name in ("a", "note", "tool"):
            os.close(nar.open_unpacked(node(name)))
        marks = path_of(directory).stat()
        path_of(directory).chmod(0o600)
        overwrite(path_of(directory))
        os.utime(path_of(directory), ns=(marks.st_atime_ns, marks.st_mtime_ns))  # as if damaged on the disk
        os.utime(path_of(directory, "note"), (1000, 5000))
        seen: list[int] = []
        found = {entry.path(cache.layout).name: right for entry, right in verify(cache.layout, seen.append)}
        paths = [path_of(directory, name).name for name in ("a", "note", "tool")]
        assert found == {f"{KEY.digits}.nar": True, paths[0]: True, paths[1]: True, paths[2]: False}
        assert sum(seen) == len(NAR) + len(NOTE) + len(TOOL)
        assert files(directory) == set(paths[:2])
        note = path_of(directory, "note").stat()
        assert is_verified(note)
        assert note.st_atime == 1000  # verifying does not count as use

    def test_verify_removes_a_file_of_another_size(self, cache: NarCache, nar: OpenNar, directory: Path) -> None:
        os.close(nar.open_unpacked(node("tool")))
        path_of(directory).chmod(0o600)
        os.truncate(path_of(directory), 1000)
        assert [right for _, right in verify(cache.layout)] == [True, False]
        assert files(directory) == set()

    @pytest.mark.parametrize("why", ["there is no NAR", "the NAR is wrong"])
    def test_verify_removes_files_without_a_correct_nar(
        self, cache: NarCache, nar: OpenNar, directory: Path, why: str
    ) -> None:
        os.close(nar.open_unpacked(node("tool")))
        path = directory / f"{KEY.digits}.nar"
        if why == "there is no NAR":
            path.unlink()
        else:
            path.chmod(0o600)
            overwrite(path)
            os.utime(path, (10**9, DURABLE))  # the most recently used entry, which would be verified last
        assert [right for _, right in verify(cache.layout)] == ([] if why == "there is no NAR" else [False])
        assert {name for name in names(directory) if not name.endswith(".listing")} == set()


# Unpacks the file that the last arguments describe, and reports when it has copied half of it.
MAKER = """
import sys, time
from pathlib import Path
from narcore.cache import unpacked
from narcore.cache.layout import FileKey, NarKey
from narcore.cache.narcache import NarCache
copy = unpacked._copy
def slow(nar, target, start, size):
    copy(nar, target, start, size // 2)
    print("copying", flush=True)
    sys.stdin.readline()
    copy(nar, target, start, size)
unpacked._copy = slow
directory, digits, nar_size, start, size = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
cache = NarCache(directory, size=lambda _: 1 << 30, max_fills=1)
nar = cache.open(NarKey(digits, nar_size))
fd = cache.open_unpacked(FileKey(digits, start, size), nar)
print("done", flush=True)
"""


def maker(directory: Path) -> "subprocess.Popen[str]":
    """Start another process that unpacks the file, and stops after half of it; a line of input makes it continue."""
    numbers = map(str, (KEY.size, node("tool").nar_offset, node("tool").size))
    command = [sys.executable, "-c", MAKER, str(directory), KEY.digits, *numbers]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    return process


class TestProcesses:
    def test_concurrent_processes_unpack_the_same_file(self, nar: OpenNar, directory: Path) -> None:
        with maker(directory) as one, maker(directory) as other:
            assert contents(nar.open_unpacked(node("tool"))) == TOOL
            assert len(files(directory)) == 3
            for process in (one, other):
                assert process.communicate("continue\n", timeout=20)[0] == "done\n"
                assert path_of(directory).read_bytes() == TOOL
        assert contents(nar.open_unpacked(node("tool"))) == TOOL
        assert files(directory) == {path_of(directory).name}

    @pytest.mark.parametrize("by", ["clean", "room"])
    def test_leftovers_of_a_killed_process_are_removed(
        self, nar: OpenNar, cache: NarCache, directory: Path, by: str
    ) -> None:
        with maker(directory) as process:
            assert cache.clean() == 0  # the process is alive
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=20)
        assert len(files(directory)) == 1
        assert not path_of(directory).exists()
        if by == "clean":
            assert cache.clean() == 2  # the file, and the reservation
            assert files(directory) == set()
        else:
            assert contents(nar.open_unpacked(node("note"))) == NOTE
            assert files(directory) == {path_of(directory, "note").name}
        assert contents(nar.open_unpacked(node("tool"))) == TOOL

    def test_concurrent_unpacking_survives_repeated_clearing(
        self, make_cache: MakeCache, opened: Opened, directory: Path
    ) -> None:
        caches = [make_cache(), make_cache()]
        add_to_cache(caches[0], NAR)
        nars = [opened(cache, KEY) for cache in caches]
        end = threading.Event()

        def clear() -> None:
            while not end.wait(0.005):
                with suppress(CacheFailure):
                    caches[1].clear()

        def unpack_correctly(number: int) -> bool | None:
            try:
                return contents(nars[number % 2].open_unpacked(node("tool"))) == TOOL
            except CacheFailure:  # evicted three times
                return None

        thread = threading.Thread(target=clear)
        thread.start()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(unpack_correctly, range(200)))
        end.set()
        thread.join()
        assert False not in found
        assert found.count(True) > 100
        until(lambda: len(files(directory)) <= 1)


def test_concurrent_calls_in_one_process_unpack_once(nar: OpenNar, unpackings: list[int]) -> None:
    with ThreadPoolExecutor(16) as pool:
        fds = list(pool.map(nar.open_unpacked, [node("tool")] * 16))
    assert [contents(fd) == TOOL for fd in fds] == [True] * 16
    assert len(unpackings) <= 2  # a call that starts just as the first one ends may unpack again


def test_unpacking_does_not_change_the_nar(nar: OpenNar, cache: NarCache) -> None:
    os.close(nar.open_unpacked(node("tool")))
    assert cached_bytes(cache, KEY) == NAR


class TestReserve:
    """Room for many small files is reserved at once."""

    @pytest.fixture
    def scans(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """A list with one item per scan of the directory for room."""
        found: list[int] = []
        make_room_for_file = eviction.make_room_for_file

        def counted(*args: object, **more: object) -> object:
            found.append(1)
            return make_room_for_file(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(reserve, "make_room_for_file", counted)
        return found

    def room(self, directory: Path) -> list[int]:
        return [path.stat().st_size for path in directory.glob(".spare.*")]

    def test_many_small_files_need_one_scan(
        self, make_cache: MakeCache, opened: Opened, directory: Path, scans: list[int]
    ) -> None:
        cache = make_cache(1 << 30)
        add_to_cache(cache, NAR)
        nar = opened(cache, KEY)
        for size in range(1, 301):
            os.close(nar.open_unpacked(Node(0, Kind.REGULAR, "x", size, False, 100, "")))
        assert len(scans) == 1
        assert self.room(directory) == [(1 << 30) // 100 - sum(range(2, 301))]
        cache.close()
        assert self.room(directory) == []

    def test_other_processes_count_the_reservation(
        self, make_cache: MakeCache, opened: Opened, directory: Path
    ) -> None:
        limit = 100 * len(NAR)
        cache, other = make_cache(limit), make_cache(limit)
        add_to_cache(cache, NAR)
        os.close(opened(cache, KEY).open_unpacked(node("note")))
        (reserved,) = self.room(directory)
        assert reserved == limit // 100
        too_large = nar_of(limit - reserved + 1, 1)
        assert make_room(other.layout, key_of(too_large), limit) is None
        cache.close()
        assert make_room(other.layout, NarKey("0" * 52, limit), limit) is not None

    def test_reservation_is_released_for_a_nar_as_large_as_the_cache(
        self, make_cache: MakeCache, opened: Opened, directory: Path
    ) -> None:
        large = nar_of(10 * len(NAR), 1)
        cache = make_cache(len(large) + 1000)
        add_to_cache(cache, NAR)
        os.close(opened(cache, KEY).open_unpacked(node("note")))
        assert self.room(directory) == [(len(large) + 1000) // 100]
        add_to_cache(cache, large)
        assert cache.is_cached(key_of(large))

    def test_file_fits_even_if_the_reservation_does_not(
        self, make_cache: MakeCache, opened: Opened, directory: Path, scans: list[int]
    ) -> None:
        """A cache that is too small for the reservation still has room for the file itself."""
        cache = make_cache(len(NAR) + 500)
        add_to_cache(cache, NAR)
        nar = opened(cache, KEY)
        os.close(nar.open_unpacked(node("note")))
        os.close(nar.open_unpacked(Node(0, Kind.REGULAR, "x", 100, False, 100, "")))
        assert len(scans) == 4  # two each
        assert self.room(directory) == [0]
        assert cache.is_cached(KEY)

    def test_reservation_evicts_older_entries(self, make_cache: MakeCache, opened: Opened, directory: Path) -> None:
        cache = make_cache(2 * len(NAR))
        old = add_to_cache(cache, nar_of(len(NAR) - 3000, 1))
        add_to_cache(cache, NAR)
        os.close(opened(cache, KEY).open_unpacked(node("note")))
        assert not cache.is_cached(old)
        assert cache.is_cached(KEY)

    def test_full_disk_does_not_evict_one_entry_per_file(
        self, cache: NarCache, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An evicted entry that is still open somewhere frees no space, so evicting more entries would not help."""
        for number in range(1, 4):
            add_to_cache(cache, nar_of(len(NAR), number))
        add_to_cache(cache, NAR)
        nar, still_open = opened(cache, KEY), True
        before = len(cache.entries())

        def free(directory: Path) -> int:
            return 0 if still_open else len(NAR) * (before - len(cache.entries()))

        monkeypatch.setattr(eviction, "free_bytes", free)
        for name in ("note", "tool", "note"):
            with pytest.raises(CacheFailure, match="no room"):
                nar.open_unpacked(node(name))
        assert len(cache.entries()) == before - 1
        still_open = False
        os.close(nar.open_unpacked(node("tool")))

    def test_reservation_of_a_killed_process_is_removed(self, cache: NarCache, directory: Path) -> None:
        (directory / ".spare.1-0.new").write_bytes(b"")
        os.truncate(directory / ".spare.1-0.new", 1 << 40)
        make_room(cache.layout, key_of(NAR), 1 << 30)
        assert self.room(directory) == []
        (directory / ".spare.1-0.new").touch()
        assert cache.clean() == 1

    def test_emptied_directory_can_be_used_again(self, cache: NarCache, nar: OpenNar, directory: Path) -> None:
        os.close(nar.open_unpacked(node("note")))
        for path in directory.iterdir():
            path.unlink()
        for name in ("a", "note", "tool"):
            assert len(contents(nar.open_unpacked(node(name)))) == node(name).size
