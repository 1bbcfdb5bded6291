"""The store does not answer, or lies, and readers are killed: an error in time, nothing wrong, and nobody who can't be killed."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.builders import Tree
from tests.e2e.upstream import Upstream
from tests.mount.conftest import RunMount, write
from tests.mount.mounting import PLAIN, Asking, Mounted, ask, until
from tests.mount.samples import KEY, NARS, OTHER_KEY, base, files_of, random_bytes, sample

MIB = 1 << 20
DEADLINE = 1
SLACK = 3.0  # on top of it: another try of who reads, a machine that is busy
SETTINGS = {"NAR_MOUNT_DEADLINE": str(DEADLINE)}
MODES = {"passthrough": (), "plain": PLAIN}

Serve = Callable[..., str]

FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "down": ("*", {"drop": True}),
    "down for NARs": (NARS, {"drop": True}),
    "500": ("*", {"status": 500}),
    "500 for NARs": (NARS, {"status": 500}),
    "503 for narinfos": ("*.narinfo", {"status": 503}),
    "says nothing": ("*", {"delay": 2.5 * DEADLINE}),
    "stops in narinfos": ("*.narinfo", {"stall_after": 20}),
    "stops in NARs": (NARS, {"stall_after": 1000}),
    "cut narinfos": ("*.narinfo", {"cut_after": 20}),
    "cut NARs": (NARS, {"cut_after": 1000}),
    "short NARs": (NARS, {"length": 1000}),
    "corrupt NARs": (NARS, {"patch": (5000, bytes(8))}),
    "NARs of zeros": (NARS, {"body": bytes(100_000)}),
    "no NARs": (NARS, {"status": 404}),
    "a page instead of narinfos": ("*.narinfo", {"body": b"<html>Please log in</html>"}),
    "empty narinfos": ("*.narinfo", {"body": b""}),
    "binary narinfos": ("*.narinfo", {"body": random_bytes(1, 5000)}),
}


def name_of(fault: str) -> str:
    return "at-" + fault.replace(" ", "-")


@pytest.fixture(scope="module")
def faulty(run_mount: RunMount, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mounted, Upstream]]:
    """A path for each fault, and one more, which has been read from."""
    names = ["known", *map(name_of, FAULTS)]
    trees = {name: sample(number) for number, name in enumerate(names)}
    directory = tmp_path_factory.mktemp("faulty")
    write(directory, builders.binary_cache(trees, compression="none", secret_key=KEY))
    with (
        Upstream() as upstream,
        run_mount(upstream.mount("cache", directory), settings=SETTINGS) as mount,
    ):
        (mount.path(base("known")) / "a-first").read_bytes()
        yield mount, upstream


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_in_time_and_then_all_is_well(faulty: tuple[Mounted, Upstream], fault: str) -> None:
    mount, upstream = faulty
    pattern, details = FAULTS[fault]
    number = 1 + list(FAULTS).index(fault)
    path = mount.path(base(name_of(fault)))
    with upstream.fault(pattern, **details):
        failed = ask("cat", path / "a-first")
        assert failed.output == b""
        assert "Input/output error" in failed.errors
        assert failed.seconds < DEADLINE + SLACK
        again = ask("stat", path)
        assert "Input/output error" in again.errors, "it was not remembered as missing"
        assert again.seconds < DEADLINE + SLACK
        assert path.name not in os.listdir(mount.target)
        assert (mount.path(base("known")) / "large").read_bytes() == dict(files_of(sample(0)))["large"]
    until(lambda: ask("stat", path).status == 0, "it is there, without another mount", DEADLINE + SLACK)
    for name, data in files_of(sample(number)):
        assert (path / name).read_bytes() == data


def test_slow_but_on_its_way(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    """The deadline is for when nothing comes."""
    url = serve({"one": sample(1, 400_000)}, compression="none")
    with run_mount(url, settings=SETTINGS) as mount, upstream.fault(NARS, rate=100_000):
        outcome = ask("cat", mount.path(base("one")) / "a-first")
        assert outcome.output == b"first of 1\n", outcome
        assert outcome.seconds > DEADLINE


def test_what_is_here_needs_no_store(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)}), settings=SETTINGS) as mount:
        path = mount.path(base("one"))
        os.lstat(path)
        with upstream.fault("*", drop=True):
            for name, data in files_of(sample(1)):
                assert (path / name).read_bytes() == data
            assert sorted(os.listdir(path)) == sorted(sample(1))


def test_others_are_not_held_up(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    """A hundred paths whose store says nothing: others answer at once, known or not."""
    names = [f"slow-{number}" for number in range(100)]
    url = serve({name: sample(number) for number, name in enumerate(["known", "other", *names])}, compression="none")
    with run_mount(url) as mount, ExitStack() as faults:
        os.lstat(mount.path(base("known")))
        faults.enter_context(upstream.fault(f"*{base('slow-0')[:32]}.narinfo", delay=4))
        first = Asking("stat", mount.path(base("slow-0")))
        until(lambda: mount.status()["waiting"] == 1, "it waits")
        assert ask("cat", mount.path(base("other")) / "a-first").seconds < 1
        for name in names[1:]:
            faults.enter_context(upstream.fault(f"*{base(name)[:32]}.narinfo", delay=4))
        others = [Asking("stat", mount.path(base(name))) for name in names[1:]]
        until(lambda: mount.status()["waiting"] == 100, "all wait")
        start = time.monotonic()
        assert (mount.path(base("known")) / "large").read_bytes() == dict(files_of(sample(0)))["large"]
        assert os.path.lexists(mount.target)
        assert time.monotonic() - start < 1
        assert {asking.outcome().status for asking in (first, *others)} == {0}


# ---- killed while they wait


def test_killed_in_a_look_up(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)})) as mount, upstream.fault("*.narinfo", delay=4):
        path = mount.path(base("one"))
        killed = Asking("stat", path)
        until(lambda: mount.status()["waiting"], "it waits")
        patient = Asking("cat", path / "z-last")
        assert killed.kill() < 1
        until(lambda: mount.status()["interrupts"] == 1, "it is let go")
        assert patient.outcome().output == b"last of 1\n"
        assert upstream.count("*.narinfo") == 1


def test_killed_while_a_nar_comes(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)}, compression="none")) as mount, ExitStack() as fault:
        fault.enter_context(upstream.fault(NARS, stall_after=2000))
        path = mount.path(base("one"))
        killed = Asking("ls", "-l", path)
        until(lambda: mount.status()["waiting"], "it waits")
        patient = Asking("cat", path / "large")
        assert killed.kill() < 1
        fault.close()
        assert patient.outcome().output == dict(files_of(sample(1)))["large"]
        assert upstream.count(NARS) == 1


@pytest.mark.parametrize("mode", MODES)
def test_killed_in_a_read(serve: Serve, upstream: Upstream, run_mount: RunMount, mode: str) -> None:
    """The name is known, and the contents are not here any more."""
    with run_mount(serve({"one": sample(1)}, compression="none"), *MODES[mode]) as mount:
        files = [mount.path(base("one")) / name for name in ("large", "z-last")]
        for file in files:
            os.lstat(file)
        empty(mount.cache_dir)
        mount.wait_for_successor(mount.kill_worker())
        with upstream.fault(NARS, stall_after=2000):
            killed = [Asking("cat", file) for file in files]
            patient = Asking("cat", *files)
            until(lambda: mount.status()["waiting"] >= 2, "they wait")
            for asking in killed:
                assert asking.kill() < 1
        assert patient.outcome().output == dict(files_of(sample(1)))["large"] + b"last of 1\n"


def test_many_are_killed_at_once(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    """Several for each path."""
    with run_mount(serve({f"p-{number}": sample(number) for number in range(10)})) as mount:
        with upstream.fault("*.narinfo", delay=5):
            asking = [Asking("stat", mount.path(base(f"p-{number % 10}"))) for number in range(60)]
            until(lambda: mount.status()["waiting"] == 10, "all wait")
            start = time.monotonic()
            for each in asking:
                each.process.kill()
            for each in asking:
                each.kill()
            assert time.monotonic() - start < 2
            assert mount.status()["waiting"] == 0
        until(lambda: ask("stat", mount.path(base("p-3"))).status == 0, "it is there")


def empty(cache_dir: Path) -> None:
    """As if all had been evicted."""
    for path in cache_dir.rglob("*"):
        if path.is_file() and not path.name.startswith((".", "lock")):
            path.unlink(missing_ok=True)


# ---- lies


def is_hidden(mount: Mounted, name: str) -> None:
    path = mount.path(base(name))
    for program, file in (("stat", path), ("cat", path / "a-first"), ("ls", path), ("stat", path / "bin/tool")):
        outcome = ask(program, file)
        assert outcome.status != 0
        assert outcome.output == b""
    assert base(name) not in os.listdir(mount.target)


@pytest.mark.parametrize("early", [(), ("--early",)], ids=["verified", "early"])
@pytest.mark.parametrize(
    "key", [None, OTHER_KEY, replace(OTHER_KEY, name=KEY.name)], ids=["none", "other", "same name"]
)
def test_not_signed_by_a_trusted_key(serve: Serve, run_mount: RunMount, key: object, early: tuple[str, ...]) -> None:
    with run_mount(serve({"one": sample(1)}, secret_key=key), *early) as mount:
        assert mount.status()["last_error"] is None
        is_hidden(mount, "one")
        told = mount.status()["last_error"]
        assert told["text"].startswith(f"name {base('one')}: ")
        assert "no trusted key has signed" in told["text"]
        assert 0 <= time.time() - told["at"] < 60


def lying(tmp_path: Path, upstream: Upstream, change: Callable[[dict[str, bytes]], None]) -> str:
    """A signed cache in which something was changed afterwards."""
    files = builders.binary_cache({"one": sample(1)}, compression="none", secret_key=KEY)
    change(files)
    write(tmp_path / "lying", files)
    return upstream.mount("lying", tmp_path / "lying")


def narinfo(files: dict[str, bytes]) -> str:
    return next(name for name in files if name.endswith(".narinfo"))


def nar(files: dict[str, bytes]) -> str:
    return next(name for name in files if name.startswith("nar/"))


def other_hash(files: dict[str, bytes]) -> None:
    """The narinfo promises another NAR than was signed, and that comes."""
    evil = builders.nar(sample(2))
    files[nar(files)] = evil
    text = files[narinfo(files)].decode()
    info = builders.nar_info(builders.store_path("one"), evil, compression="none", url=nar(files)).to_text()
    signatures = [line for line in text.splitlines() if line.startswith("Sig: ")]
    files[narinfo(files)] = (info + "\n".join(signatures) + "\n").encode()


def other_nar(files: dict[str, bytes]) -> None:
    """What comes is another NAR of the same length, and its FileHash, which nobody signs, is right."""
    evil = builders.nar(sample(2))
    assert len(evil) == len(files[nar(files)])
    right = builders.nar_info(builders.store_path("one"), files[nar(files)], compression="none").file_hash
    wrong = builders.nar_info(builders.store_path("one"), evil, compression="none").file_hash
    assert right is not None
    assert wrong is not None
    text = files[narinfo(files)].decode()
    lines = [f"FileHash: {wrong}" if line.startswith("FileHash: ") else line for line in text.splitlines()]
    files[nar(files)] = evil
    files[narinfo(files)] = ("\n".join(lines) + "\n").encode()


def other_path(files: dict[str, bytes]) -> None:
    """The narinfo of another path, rightly signed, under this one's hash."""
    other = builders.binary_cache({"two": sample(2)}, compression="none", secret_key=KEY)
    own = narinfo(files)
    files |= {name: data for name, data in other.items() if name.startswith("nar/")}
    files[own] = other[narinfo(other)]


@pytest.mark.parametrize("change", [other_hash, other_nar, other_path], ids=lambda change: change.__name__)
def test_nothing_of_a_lie_is_visible(
    upstream: Upstream, run_mount: RunMount, tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    with run_mount(lying(tmp_path, upstream, change), settings=SETTINGS) as mount:
        is_hidden(mount, "one")
        assert not [path for path in mount.cache_dir.rglob("*") if path.suffix in (".nar", ".ls")]


@pytest.mark.parametrize(
    "listing", [builders.listing_json(sample(2)), b"{", b"\0" * 1000, None], ids=["other", "broken", "zeros", "none"]
)
def test_a_lying_listing_is_not_looked_at(
    upstream: Upstream, run_mount: RunMount, tmp_path: Path, listing: bytes | None
) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = next(name for name in files if name.endswith(".ls"))
        del files[name]
        if listing is not None:
            files[name] = listing

    with run_mount(lying(tmp_path, upstream, change)) as mount:
        path = mount.path(base("one"))
        for name, data in files_of(sample(1)):
            assert (path / name).read_bytes() == data
        assert sorted(os.listdir(path)) == sorted(sample(1))


# ---- the disk


@pytest.mark.parametrize("mode", MODES)
def test_evicted_while_it_is_read(serve: Serve, run_mount: RunMount, mode: str, tmp_path: Path) -> None:
    """Room for three of ten paths, and readers of all of them."""
    names = [f"p-{number}" for number in range(10)]
    url = serve({name: {"data": random_bytes(number, MIB)} for number, name in enumerate(names)}, compression="none")
    expected = tmp_path / "expected"
    expected.mkdir()
    for number, name in enumerate(names):
        (expected / name).write_bytes(random_bytes(number, MIB))
    with run_mount(url, *MODES[mode], settings={"NAR_CACHE_SIZE": "7M"}) as mount:
        loops = [
            Asking("sh", "-ec", f"for turn in 1 2 3 4; do cmp {expected / name} {mount.path(base(name)) / 'data'}; "
                   f"dd if={mount.path(base(name)) / 'data'} iflag=nocache count=0 status=none; done")
            for name in names
        ]  # fmt: skip
        for loop in loops:
            assert loop.outcome(50).status == 0, loop
        # Room is made for NARs and files; a listing, of some hundred bytes here, counts when the next room is made.
        assert mount.status()["cache"]["bytes"] <= 7 * MIB + 16_000


def test_what_was_evicted_takes_no_room(serve: Serve, run_mount: RunMount, tmp_path: Path) -> None:
    """Nor does what the kernel reads by itself, and could keep on the disk for ever."""
    names = [f"p-{number}" for number in range(12)]
    url = serve({name: {"data": random_bytes(number, MIB)} for number, name in enumerate(names)}, compression="none")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", disk], check=True)
    try:
        with run_mount(url, cache_dir=disk / "cache", settings={"NAR_CACHE_SIZE": "7M"}) as mount:
            with (mount.path(base(names[0])) / "data").open("rb") as held:
                for number, name in enumerate(names):
                    assert (mount.path(base(name)) / "data").read_bytes() == random_bytes(number, MIB)
                until(lambda: used_bytes(disk) < 9 * MIB, "only what is open is kept beside what is in the cache")
                assert held.read() == random_bytes(0, MIB)
            until(lambda: used_bytes(disk) < 8 * MIB, "the last one is closed")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def used_bytes(directory: Path) -> int:
    """Of its file system."""
    status = os.statvfs(directory)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.parametrize("mode", MODES)
def test_the_cache_is_removed(serve: Serve, run_mount: RunMount, mode: str) -> None:
    with run_mount(serve({"one": sample(1), "two": sample(2)}), *MODES[mode]) as mount:
        path = mount.path(base("one"))
        assert (path / "a-first").read_bytes() == b"first of 1\n"
        shutil.rmtree(mount.cache_dir)
        for number, name in enumerate(("one", "two"), 1):
            for file, data in files_of(sample(number)):
                assert ask("cat", mount.path(base(name)) / file).output == data


@pytest.mark.parametrize("mode", MODES)
def test_no_room_in_the_cache(serve: Serve, run_mount: RunMount, tmp_path: Path, mode: str) -> None:
    """What does not fit can't be read, and that is said soon; what fits can."""
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", full], check=True)
    try:
        trees: dict[str, Tree] = {
            "large": {"data": random_bytes(1, 8 * MIB)},
            "tight": sample(2, 2_500_000),
            "small": sample(3),
        }
        url = serve(trees, compression="none")
        settings = SETTINGS | {"NAR_CACHE_SIZE": "100M"}
        with run_mount(url, *MODES[mode], cache_dir=full / "cache", settings=settings) as mount:
            large = ask("cat", mount.path(base("large")) / "data")
            assert large.output == b""
            assert any(word in large.errors for word in ("Input/output error", "No space left"))
            assert large.seconds < DEADLINE + SLACK
            for name in ("tight", "small", "tight"):
                for file, data in files_of(trees[name]):
                    assert ask("cat", mount.path(base(name)) / file).output == data, (name, file)
    finally:
        subprocess.run(["umount", "-l", full], check=True)


def test_a_deadline_that_is_not_one(run_mount: RunMount) -> None:
    with (
        pytest.raises(RuntimeError, match="NAR_MOUNT_DEADLINE"),
        run_mount("http://127.0.0.1:1", settings={"NAR_MOUNT_DEADLINE": "soon"}),
    ):
        pass


def test_a_store_that_is_not_there_yet(run_mount: RunMount, tmp_path: Path) -> None:
    """Mounting asks nobody; and then it is an error, not a missing name."""
    with run_mount("http://127.0.0.1:1", settings=SETTINGS) as mount:
        for _ in range(2):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                os.lstat(mount.path(base("one")))
            assert caught.value.errno == errno.EIO
