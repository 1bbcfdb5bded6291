"""Stores that fail or tamper, readers that are killed, and full disks: reads fail in time, and never give wrong bytes."""

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
SLACK = 3.0  # more time for a second try of the program and for a busy machine
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
    """A mount with a store path for each fault, and another one that has been read."""
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
def test_a_fault_is_an_error_in_time_and_is_not_remembered(faulty: tuple[Mounted, Upstream], fault: str) -> None:
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
        assert "Input/output error" in again.errors, "the path is not remembered as missing"
        assert again.seconds < DEADLINE + SLACK
        assert path.name not in os.listdir(mount.target)
        assert (mount.path(base("known")) / "large").read_bytes() == dict(files_of(sample(0)))["large"]
    until(lambda: ask("stat", path).status == 0, "the path is there, without another mount", DEADLINE + SLACK)
    for name, data in files_of(sample(number)):
        assert (path / name).read_bytes() == data


def test_a_slow_download_has_no_deadline(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    """The deadline is only for downloads without progress."""
    url = serve({"one": sample(1, 400_000)}, compression="none")
    with run_mount(url, settings=SETTINGS) as mount, upstream.fault(NARS, rate=100_000):
        outcome = ask("cat", mount.path(base("one")) / "a-first")
        assert outcome.output == b"first of 1\n", outcome
        assert outcome.seconds > DEADLINE


def test_cached_paths_need_no_store(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)}), settings=SETTINGS) as mount:
        path = mount.path(base("one"))
        os.lstat(path)
        with upstream.fault("*", drop=True):
            for name, data in files_of(sample(1)):
                assert (path / name).read_bytes() == data
            assert sorted(os.listdir(path)) == sorted(sample(1))


def test_a_store_that_hangs_does_not_block_other_paths(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    """A hundred lookups hang; other paths are read immediately, whether they are known or not."""
    names = [f"slow-{number}" for number in range(100)]
    url = serve({name: sample(number) for number, name in enumerate(["known", "other", *names])}, compression="none")
    with run_mount(url) as mount, ExitStack() as faults:
        os.lstat(mount.path(base("known")))
        faults.enter_context(upstream.fault(f"*{base('slow-0')[:32]}.narinfo", delay=4))
        first = Asking("stat", mount.path(base("slow-0")))
        until(lambda: mount.status()["waiting"] == 1, "a request waits")
        assert ask("cat", mount.path(base("other")) / "a-first").output == b"first of 1\n"
        assert first.waits
        for name in names[1:]:
            faults.enter_context(upstream.fault(f"*{base(name)[:32]}.narinfo", delay=4))
        others = [Asking("stat", mount.path(base(name))) for name in names[1:]]
        until(lambda: mount.status()["waiting"] == 100, "all requests wait")
        assert (mount.path(base("known")) / "large").read_bytes() == dict(files_of(sample(0)))["large"]
        assert os.path.lexists(mount.target)
        assert others[-1].waits
        assert {asking.outcome().status for asking in (first, *others)} == {0}


# ---- processes that are killed while they wait


def test_a_process_is_killed_in_a_lookup(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)})) as mount, upstream.fault("*.narinfo", delay=4):
        path = mount.path(base("one"))
        killed = Asking("stat", path)
        until(lambda: mount.status()["waiting"], "a request waits")
        patient = Asking("cat", path / "z-last")
        assert killed.kill() < 1
        until(lambda: mount.status()["interrupts"] == 1, "the interrupt is counted")
        assert patient.outcome().output == b"last of 1\n"
        assert upstream.count("*.narinfo") == 1


def test_a_process_is_killed_while_a_nar_is_fetched(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)}, compression="none")) as mount, ExitStack() as fault:
        fault.enter_context(upstream.fault(NARS, stall_after=2000))
        path = mount.path(base("one"))
        killed = Asking("ls", "-l", path)
        until(lambda: mount.status()["waiting"], "a request waits")
        patient = Asking("cat", path / "large")
        assert killed.kill() < 1
        fault.close()
        assert patient.outcome().output == dict(files_of(sample(1)))["large"]
        assert upstream.count(NARS) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_process_is_killed_in_a_read(serve: Serve, upstream: Upstream, run_mount: RunMount, mode: str) -> None:
    """The name is known, and the NAR is not cached any more."""
    with run_mount(serve({"one": sample(1)}, compression="none"), *MODES[mode]) as mount:
        files = [mount.path(base("one")) / name for name in ("large", "z-last")]
        for file in files:
            os.lstat(file)
        empty(mount.cache_dir)
        mount.wait_for_successor(mount.kill_worker())
        with upstream.fault(NARS, stall_after=2000):
            killed = [Asking("cat", file) for file in files]
            patient = Asking("cat", *files)
            until(lambda: mount.status()["waiting"] >= 2, "the requests wait")
            for asking in killed:
                assert asking.kill() < 1
        assert patient.outcome().output == dict(files_of(sample(1)))["large"] + b"last of 1\n"


def test_many_processes_are_killed_at_the_same_time(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    """Several processes wait for each path."""
    with run_mount(serve({f"p-{number}": sample(number) for number in range(10)})) as mount:
        with upstream.fault("*.narinfo", delay=5):
            asking = [Asking("stat", mount.path(base(f"p-{number % 10}"))) for number in range(60)]
            until(lambda: mount.status()["waiting"] == 10, "all requests wait")
            start = time.monotonic()
            for each in asking:
                each.process.kill()
            for each in asking:
                each.kill()
            assert time.monotonic() - start < 2
            assert mount.status()["waiting"] == 0
        until(lambda: ask("stat", mount.path(base("p-3"))).status == 0, "the path is there")


def empty(cache_dir: Path) -> None:
    """Remove all files of the cache, as if they had been evicted."""
    for path in cache_dir.rglob("*"):
        if path.is_file() and not path.name.startswith((".", "lock")):
            path.unlink(missing_ok=True)


# ---- tampering


def assert_hidden(mount: Mounted, name: str) -> None:
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
def test_paths_without_a_trusted_signature_are_hidden(
    serve: Serve, run_mount: RunMount, key: object, early: tuple[str, ...]
) -> None:
    with run_mount(serve({"one": sample(1)}, secret_key=key), *early) as mount:
        assert mount.status()["last_error"] is None
        assert_hidden(mount, "one")
        error = mount.status()["last_error"]
        assert error["text"].startswith(f"name {base('one')}: ")
        assert "no trusted key has signed" in error["text"]
        assert 0 <= time.time() - error["at"] < 60


def tampered(tmp_path: Path, upstream: Upstream, change: Callable[[dict[str, bytes]], None]) -> str:
    """Serve a signed cache that was changed after signing, and return its URL."""
    files = builders.binary_cache({"one": sample(1)}, compression="none", secret_key=KEY)
    change(files)
    write(tmp_path / "tampered", files)
    return upstream.mount("tampered", tmp_path / "tampered")


def narinfo(files: dict[str, bytes]) -> str:
    return next(name for name in files if name.endswith(".narinfo"))


def nar(files: dict[str, bytes]) -> str:
    return next(name for name in files if name.startswith("nar/"))


def other_hash(files: dict[str, bytes]) -> None:
    """Replace the NAR and the NarHash of the narinfo, and keep the signature."""
    evil = builders.nar(sample(2))
    files[nar(files)] = evil
    text = files[narinfo(files)].decode()
    info = builders.nar_info(builders.store_path("one"), evil, compression="none", url=nar(files)).to_text()
    signatures = [line for line in text.splitlines() if line.startswith("Sig: ")]
    files[narinfo(files)] = (info + "\n".join(signatures) + "\n").encode()


def other_nar(files: dict[str, bytes]) -> None:
    """Replace the NAR with one of the same length, and correct the FileHash, which is not signed."""
    evil = builders.nar(sample(2))
    assert len(evil) == len(files[nar(files)])
    old_hash = builders.nar_info(builders.store_path("one"), files[nar(files)], compression="none").file_hash
    new_hash = builders.nar_info(builders.store_path("one"), evil, compression="none").file_hash
    assert old_hash is not None
    assert new_hash is not None
    text = files[narinfo(files)].decode()
    lines = [f"FileHash: {new_hash}" if line.startswith("FileHash: ") else line for line in text.splitlines()]
    files[nar(files)] = evil
    files[narinfo(files)] = ("\n".join(lines) + "\n").encode()


def other_path(files: dict[str, bytes]) -> None:
    """Serve the narinfo of another path, with its valid signature, under the hash of this one."""
    other = builders.binary_cache({"two": sample(2)}, compression="none", secret_key=KEY)
    own = narinfo(files)
    files |= {name: data for name, data in other.items() if name.startswith("nar/")}
    files[own] = other[narinfo(other)]


@pytest.mark.parametrize("change", [other_hash, other_nar, other_path], ids=lambda change: change.__name__)
def test_nothing_of_a_tampered_path_is_visible(
    upstream: Upstream, run_mount: RunMount, tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    with run_mount(tampered(tmp_path, upstream, change), settings=SETTINGS) as mount:
        assert_hidden(mount, "one")
        assert not [path for path in mount.cache_dir.rglob("*") if path.suffix in (".nar", ".listing")]


@pytest.mark.parametrize(
    "listing", [builders.listing_json(sample(2)), b"{", b"\0" * 1000, None], ids=["other", "broken", "zeros", "none"]
)
def test_a_wrong_listing_is_not_used(
    upstream: Upstream, run_mount: RunMount, tmp_path: Path, listing: bytes | None
) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = next(name for name in files if name.endswith(".ls"))
        del files[name]
        if listing is not None:
            files[name] = listing

    with run_mount(tampered(tmp_path, upstream, change)) as mount:
        path = mount.path(base("one"))
        for name, data in files_of(sample(1)):
            assert (path / name).read_bytes() == data
        assert sorted(os.listdir(path)) == sorted(sample(1))


# ---- the disk


@pytest.mark.parametrize("mode", MODES)
def test_files_are_right_while_their_nars_are_evicted(
    serve: Serve, run_mount: RunMount, mode: str, tmp_path: Path
) -> None:
    """The cache has room for three of ten paths, and all are read."""
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
        # Eviction happens for NARs and files; a listing, here of a few hundred bytes, counts at the next eviction.
        assert mount.status()["cache"]["bytes"] <= 7 * MIB + 16_000


def test_evicted_files_take_no_disk_space(serve: Serve, run_mount: RunMount, tmp_path: Path) -> None:
    """This includes files that the kernel reads itself and could keep on the disk."""
    names = [f"p-{number}" for number in range(12)]
    url = serve({name: {"data": random_bytes(number, MIB)} for number, name in enumerate(names)}, compression="none")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", disk], check=True)
    try:
        with run_mount(url, cache_dir=disk / "cache", settings={"NAR_CACHE_SIZE": "7M"}) as mount:
            with (mount.path(base(names[0])) / "data").open("rb") as file:
                for number, name in enumerate(names):
                    assert (mount.path(base(name)) / "data").read_bytes() == random_bytes(number, MIB)
                until(lambda: used_bytes(disk) < 9 * MIB, "besides the cache, only the open file takes space")
                assert file.read() == random_bytes(0, MIB)
            until(lambda: used_bytes(disk) < 8 * MIB, "the last file is closed")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def used_bytes(directory: Path) -> int:
    """Return how many bytes of the file system are used."""
    status = os.statvfs(directory)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.parametrize("mode", MODES)
def test_paths_can_be_read_after_the_cache_was_removed(serve: Serve, run_mount: RunMount, mode: str) -> None:
    with run_mount(serve({"one": sample(1), "two": sample(2)}), *MODES[mode]) as mount:
        path = mount.path(base("one"))
        assert (path / "a-first").read_bytes() == b"first of 1\n"
        shutil.rmtree(mount.cache_dir)
        for number, name in enumerate(("one", "two"), 1):
            for file, data in files_of(sample(number)):
                assert ask("cat", mount.path(base(name)) / file).output == data


@pytest.mark.parametrize("mode", MODES)
def test_a_nar_that_does_not_fit_on_the_disk_is_an_error(
    serve: Serve, run_mount: RunMount, tmp_path: Path, mode: str
) -> None:
    """The read fails soon, and smaller NARs can be read."""
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


def test_an_invalid_deadline_is_refused(run_mount: RunMount) -> None:
    with (
        pytest.raises(RuntimeError, match="NAR_MOUNT_DEADLINE"),
        run_mount("http://127.0.0.1:1", settings={"NAR_MOUNT_DEADLINE": "soon"}),
    ):
        pass


def test_a_store_that_is_down_does_not_prevent_mounting(run_mount: RunMount, tmp_path: Path) -> None:
    """Mounting sends no requests. A lookup is an error then, not a missing name."""
    with run_mount("http://127.0.0.1:1", settings=SETTINGS) as mount:
        for _ in range(2):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                os.lstat(mount.path(base("one")))
            assert caught.value.errno == errno.EIO
