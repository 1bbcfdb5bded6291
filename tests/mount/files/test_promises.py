"""What is a directory by its store's listing can be looked up before its NAR has come: nobody waits in the kernel, and nothing is
seen of it.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import builders
from tests.builders import Tree
from tests.e2e.upstream import Upstream
from tests.mount.conftest import RunMount, write
from tests.mount.mounting import OVERLAY, Asking, Mounted, ask, container, until
from tests.mount.samples import KEY, NARS, base, files_of, sample

SETTINGS = {"NAR_MOUNT_DEADLINE": "1"}
SOON = 5  # seconds: half of the deadline, at which everybody is let go

Serve = Callable[..., str]


@pytest.fixture
def stalled(serve: Serve, upstream: Upstream) -> tuple[str, ExitStack]:
    """A store, and what ends its silence in the middle of the NAR of ``one``."""
    url, stack = serve({"one": sample(1), "two": sample(2)}, compression="none"), ExitStack()
    nar = builders.nar_info(builders.store_path("one"), builders.nar(sample(1)), compression="none").nar_hash.nix32
    stack.enter_context(upstream.fault(f"*{nar}*", stall_after=2000))
    return url, stack


def test_all_who_wait_can_be_killed(stalled: tuple[str, ExitStack], run_mount: RunMount, upstream: Upstream) -> None:
    """However many look the same name up."""
    url, silence = stalled
    with run_mount(url) as mount:
        path = mount.path(base("one"))
        commands: list[tuple[str | Path, ...]] = [
            ("stat", path),
            ("ls", path),
            ("cat", path / "a-first"),
            ("stat", path),
        ]
        waiting = [Asking(*command) for command in commands]
        until(lambda: mount.status()["waiting"] == len(waiting), "each of them waits for us")
        assert all(asking.kill() < SOON for asking in waiting)
        patient = Asking("cat", path / "large")
        silence.close()
        assert patient.outcome().output == dict(files_of(sample(1)))["large"]
        assert upstream.count(NARS) == 1


def test_so_can_those_who_wait_in_an_overlay(
    stalled: tuple[str, ExitStack], run_mount: RunMount, tmp_path: Path
) -> None:
    url, silence = stalled
    with run_mount(url) as mount:
        cat = f'cat "$root/nix/store/{base("one")}/a-first" & echo $!; '
        pod = Asking(
            *container(tmp_path / "pod", mount, OVERLAY + cat * 3 + 'for job in $(jobs -p); do echo "$job"; done; wait')
        )
        until(lambda: mount.status()["waiting"] == 3, "each of them waits for us")
        assert pod.process.stdout is not None
        killed = [int(pod.process.stdout.readline()) for _ in range(3)][:2]
        start = time.monotonic()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda: mount.status()["waiting"] == 1, "they are gone")
        assert time.monotonic() - start < SOON
        silence.close()
        assert pod.outcome().output == b"first of 1\n"


def test_who_creates_a_file_holds_nobody_up(stalled: tuple[str, ExitStack], run_mount: RunMount) -> None:
    """The kernel takes the root's lock for that, before it says that nothing can be written."""
    url, silence = stalled
    with run_mount(url) as mount, silence:
        waiting = Asking("cat", mount.path(base("one")) / "a-first")
        until(lambda: mount.status()["waiting"] == 1, "it waits")
        for command in (("touch", mount.target / "new"), ("mkdir", mount.target / "new")):
            assert "Read-only file system" in ask(*command, seconds=SOON).errors
        assert ask("cat", mount.path(base("two")) / "a-first", seconds=SOON).output == b"first of 2\n"
        assert waiting.waits


def test_nothing_of_it_is_seen(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    """Nor is it listed, also by a next worker, until it has come."""
    url = serve({"one": sample(1)}, compression="none")
    with run_mount(url, settings=SETTINGS) as mount:
        path = mount.path(base("one"))
        with upstream.fault(NARS, patch=(1000, b"wrong")):
            for _ in range(2):
                for command in (("stat", path), ("ls", path), ("cat", path / "a-first"), ("test", "-d", path)):
                    outcome = ask(*command)
                    assert outcome.status
                    assert not outcome.output
                assert os.listdir(mount.target) == []
                mount.wait_for_successor(mount.kill_worker())
        until(lambda: ask("stat", path).status == 0, "it is there")
        assert os.listdir(mount.target) == [path.name]
        mount.wait_for_successor(mount.kill_worker())
        assert os.listdir(mount.target) == [path.name]


def test_a_directory_that_is_a_file(run_mount: RunMount, upstream: Upstream, tmp_path: Path) -> None:
    """And a file that is a directory: the listing is no more than a hint."""
    trees: dict[str, Tree] = {"file": b"contents\n", "directory": sample(1)}
    lies = {"file": builders.listing_json(sample(1)), "directory": builders.listing_json(b"contents\n")}
    files = builders.binary_cache(trees, secret_key=KEY)
    files |= {f"{builders.store_path(name).hash_part}.ls": listing for name, listing in lies.items()}
    write(tmp_path / "lying", files)
    with run_mount(upstream.mount("lying", tmp_path / "lying")) as mount:
        file, directory = mount.path(base("file")), mount.path(base("directory"))
        until(lambda: ask("cat", file).output == b"contents\n", "it is the file that it is")
        assert ask("stat", "--format=%F", file).output == b"regular file\n"
        assert sorted(os.listdir(directory)) == sorted(sample(1))
        assert sorted(os.listdir(mount.target)) == sorted([file.name, directory.name])


def test_what_has_gone_is_missing(serve: Serve, upstream: Upstream, run_mount: RunMount, tmp_path: Path) -> None:
    """It was promised, and was never there."""
    url = serve({"one": sample(1)}, "store")
    with run_mount(url, settings=SETTINGS) as mount:
        path = mount.path(base("one"))
        with upstream.fault(NARS, status=500):
            assert "Input/output error" in ask("stat", path).errors
        for file in (tmp_path / "served/store").rglob("*"):
            if file.is_file() and file.name != "nix-cache-info":
                file.unlink()
        mount.wait_for_successor(mount.kill_worker())  # narinfos are remembered for a while
        assert "No such file or directory" in ask("stat", path).errors
        assert os.listdir(mount.target) == []


def test_a_store_without_listings(run_mount: RunMount, upstream: Upstream, tmp_path: Path) -> None:
    """The first who looks a name up waits for the NAR."""
    files = builders.binary_cache({"one": sample(1)}, compression="none", secret_key=KEY)
    write(tmp_path / "plain", {name: data for name, data in files.items() if not name.endswith(".ls")})
    with run_mount(upstream.mount("plain", tmp_path / "plain")) as mount:
        assert_right(mount, "one", sample(1))


def assert_right(mount: Mounted, name: str, tree: dict[str, Tree]) -> None:
    for file, data in files_of(tree):
        assert (mount.path(base(name)) / file).read_bytes() == data
