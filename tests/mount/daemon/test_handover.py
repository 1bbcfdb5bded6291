"""The worker dies or is replaced while programs use the mount: they wait for a moment and continue."""

import mmap
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from narmount.fuse.mountinfo import mounts_at
from narmount.fuse.protocol import PRUNE_MINOR
from tests import ROOT, needs, proofs
from tests.builders import Tree
from tests.e2e.upstream import Upstream
from tests.mount.conftest import RunMount
from tests.mount.mounting import (
    BIND,
    PLAIN,
    PROGRAM,
    Asking,
    Mounted,
    ask,
    container,
    environment,
    in_chroot,
    nar_hash,
    until,
)
from tests.mount.programs import HELLO_PROGRAM, PYTHON_PROGRAM, Programs
from tests.mount.samples import KEY, NARS, base, files_of, random_bytes, sample

MIB = 1 << 20
MODES = {"passthrough": (), "plain": PLAIN}

Serve = Callable[..., str]


@pytest.fixture(params=MODES)
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return MODES[request.param]


def drop_pages(path: Path) -> None:
    """Drop the pages of a file, so that the next read asks the worker or the cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_programs_continue_after_the_worker_is_killed(
    serve: Serve,
    made_programs: Programs,
    upstream: Upstream,
    run_mount: RunMount,
    options: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """Programs have an open file, a mapped file, a waiting lookup, and a half-read directory; one program runs from the mount."""
    stores = f"{serve({'one': sample(1, 4 * MIB), 'two': sample(2)})} {upstream.mount('programs', made_programs.cache)}"
    large = dict(files_of(sample(1, 4 * MIB)))["large"]
    with run_mount(stores, *options, key=f"{KEY.public_key} {made_programs.public_key}") as mount, ExitStack() as stack:
        path = mount.path(base("one"))
        file = stack.enter_context((path / "large").open("rb", buffering=0))
        mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        entries = stack.enter_context(os.scandir(path))
        seen = [next(entries).name]
        assert file.read(1000) == large[:1000]
        running = Asking(*container(tmp_path / "pod", mount, BIND + in_chroot(HELLO_PROGRAM, "for-ever")))
        until(lambda: (mount.target / HELLO_PROGRAM.split("/")[3]).exists(), "the program runs")
        slow = stack.enter_context(ExitStack())
        slow.enter_context(upstream.fault(f"*{base('two')[:32]}.narinfo", delay=2))
        blocked = Asking("cat", mount.path(base("two")) / "z-last")
        until(lambda: mount.status()["waiting"] == 1, "a request waits")

        holder, killed = mount.holder, mount.kill_worker()
        drop_pages(path / "large")
        assert file.read(1000) == large[1000:2000]
        assert mapped[3 * MIB : 3 * MIB + 5000] == large[3 * MIB : 3 * MIB + 5000]
        seen += [entry.name for entry in entries]
        assert sorted(seen) == sorted(sample(1))
        assert blocked.outcome().output == b"last of 2\n"
        mount.wait_for_successor(killed)
        assert (mount.status()["restarts"], mount.holder) == (1, holder)
        assert running.waits
        running.process.terminate()
        lines = running.outcome().output.split()
        assert lines.count(b"tick") > 10
        assert (path / "large").read_bytes() == large


def test_a_running_program_loads_modules_while_workers_are_killed(
    made_programs: Programs, upstream: Upstream, run_mount: RunMount, options: tuple[str, ...], tmp_path: Path
) -> None:
    """Python imports modules from the mount while workers are killed repeatedly."""
    code = (
        "import importlib, time; "
        "names = 'json ssl sqlite3 decimal email http.client xml.dom logging unittest ctypes asyncio'.split(); "
        "[(importlib.import_module(name), time.sleep(0.2)) for name in names]; print(len(names))"
    ).replace("'", '"')
    url = upstream.mount("programs", made_programs.cache)
    with run_mount(url, *options, key=made_programs.public_key) as mount:
        python = Asking(*container(tmp_path / "pod", mount, BIND + in_chroot(PYTHON_PROGRAM, "-c", code)))
        for _ in range(4):
            mount.wait_for_successor(mount.kill_worker())
        outcome = python.outcome()
        assert outcome.output == b"11\n", outcome
        assert mount.status()["restarts"] >= 4


def test_inode_numbers_stay_the_same(serve: Serve, run_mount: RunMount, options: tuple[str, ...]) -> None:
    with run_mount(serve({f"p-{number}": sample(number) for number in range(5)}), *options) as mount:
        paths = [mount.path(base(f"p-{number}")) / name for number in (3, 1, 4, 0, 2) for name in ("bin/tool", "large")]
        before = [os.lstat(path).st_ino for path in paths]
        assert len(set(before)) == len(before)
        mount.wait_for_successor(mount.kill_worker())
        ask("sh", "-c", "echo 2 > /proc/sys/vm/drop_caches")  # so that the kernel looks up all names again
        assert [os.lstat(path).st_ino for path in reversed(paths)] == before[::-1]
        assert mount.status()["paths_known"] == 5


def test_a_worker_may_be_killed_before_the_first_lookup(serve: Serve, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)})) as mount:
        mount.wait_for_successor(mount.kill_worker())
        assert (mount.path(base("one")) / "a-first").read_bytes() == b"first of 1\n"


@pytest.mark.proof
def test_readers_get_right_bytes_while_workers_are_killed_repeatedly(
    serve: Serve, run_mount: RunMount, options: tuple[str, ...]
) -> None:
    kills = proofs.length(2, 20)
    trees = {f"p-{number}": sample(number, MIB) for number in range(6)}
    with run_mount(serve(trees), *options) as mount, ThreadPoolExecutor(6) as pool:
        stop = threading.Event()

        def read(name: str) -> int:
            rounds = 0
            while not stop.is_set():
                for file, data in files_of(trees[name]):
                    drop_pages(mount.path(base(name)) / file)
                    assert (mount.path(base(name)) / file).read_bytes() == data
                rounds += 1
            return rounds

        readers = [pool.submit(read, name) for name in trees]
        try:
            for _ in range(kills):
                mount.wait_for_successor(mount.kill_worker())
                time.sleep(0.3)
        finally:
            stop.set()
        assert all(reader.result() > 0 for reader in readers)
        assert mount.status()["restarts"] >= kills


def test_hundreds_of_open_files_survive_killed_workers(
    serve: Serve, run_mount: RunMount, options: tuple[str, ...]
) -> None:
    """With passthrough, the kernel reads all files itself. They are more files than may stay registered when closed."""
    tree: dict[str, Tree] = {f"f{number:03}": random_bytes(number, 135_000) for number in range(300)}
    with run_mount(serve({"many": tree}, compression="none"), *options) as mount, ExitStack() as stack:
        path = mount.path(base("many"))
        files = {name: stack.enter_context((path / name).open("rb", buffering=0)) for name in tree}
        for _ in range(2):
            mount.wait_for_successor(mount.kill_worker())
            for name in ("f000", "f150", "f299"):
                assert (path / name).read_bytes() == tree[name], "opened again"
        for name, file in files.items():
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == tree[name]
        stack.close()
        for name, data in tree.items():
            assert (path / name).read_bytes() == data
        assert ask("sh", "-c", "echo 2 > /proc/sys/vm/drop_caches").status == 0
        until(lambda: mount.status()["passthrough_files"] <= 256, "closed files are dropped")


def test_the_next_worker_drops_files_that_nothing_has_open(serve: Serve, run_mount: RunMount) -> None:
    tree: dict[str, Tree] = {f"f{number}": random_bytes(number, 135_000) for number in range(8)}
    with run_mount(serve({"some": tree}, compression="none")) as mount, ExitStack() as stack:
        path = mount.path(base("some"))
        file = stack.enter_context((path / "f0").open("rb", buffering=0))
        for name, data in tree.items():
            assert (path / name).read_bytes() == data
        assert mount.status()["passthrough_files"] == 8
        if mount.wait_for_successor(mount.kill_worker()) and mount.status()["kernel_minor"] < PRUNE_MINOR:
            return
        until(lambda: mount.status()["passthrough_files"] == 1, "files that are not open are forgotten")
        assert file.read() == tree["f0"]


def test_a_fill_is_repeated_after_the_worker_is_killed(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    """Waiting processes get no error."""
    with run_mount(serve({"one": sample(1)}, compression="none")) as mount:
        with upstream.fault(NARS, stall_after=5000, times=1):
            blocked = [Asking("cat", mount.path(base("one")) / name) for name in ("large", "z-last")]
            until(lambda: upstream.sent(NARS) >= 5000, "a part of the NAR has been sent")
            mount.kill_worker()
            assert [each.outcome(10).status for each in blocked] == [0, 0]
        assert upstream.count(NARS) == 2


def test_the_next_worker_needs_no_store_for_cached_files(
    serve: Serve, upstream: Upstream, run_mount: RunMount, options: tuple[str, ...]
) -> None:
    with run_mount(serve({"one": sample(1, 4 * MIB)}), *options) as mount:
        path, files = mount.path(base("one")), dict(files_of(sample(1, 4 * MIB)))
        assert (path / "large").read_bytes() == files["large"]
        with upstream.fault("*", drop=True):
            mount.wait_for_successor(mount.kill_worker())
            for name, data in files.items():
                drop_pages(path / name)
                assert ask("cat", path / name).output == data, name


def test_a_waiting_process_can_be_killed_under_the_next_worker(
    serve: Serve, upstream: Upstream, run_mount: RunMount
) -> None:
    with run_mount(serve({"one": sample(1)})) as mount, upstream.fault("*.narinfo", delay=4):
        blocked = Asking("stat", mount.path(base("one")))
        until(lambda: mount.status()["waiting"] == 1, "a request waits")
        mount.wait_for_successor(mount.kill_worker())
        until(lambda: mount.status()["waiting"] == 1, "the request waits again")
        assert blocked.kill() < 1


def test_a_waiting_process_can_be_killed_while_there_is_no_worker(
    serve: Serve, upstream: Upstream, run_mount: RunMount
) -> None:
    with run_mount(serve({"one": sample(1)})) as mount, upstream.fault("*.narinfo", delay=4):
        blocked = Asking("stat", mount.path(base("one")))
        until(lambda: mount.status()["waiting"] == 1, "a request waits")
        mount.kill_worker()
        assert blocked.kill() < 3  # the next worker has to start first


# ---- the holder


def test_the_worker_becomes_the_holder_after_the_holder_is_killed(
    serve: Serve, upstream: Upstream, run_mount: RunMount, options: tuple[str, ...]
) -> None:
    url = serve({"one": sample(1, 4 * MIB), "two": sample(2)})
    with run_mount(url, *options) as mount, (mount.path(base("one")) / "large").open("rb", buffering=0) as file:
        expected, read = dict(files_of(sample(1, 4 * MIB)))["large"], bytearray(file.read(1000))
        with upstream.fault(f"*{base('two')[:32]}.narinfo", delay=2):
            blocked = Asking("cat", mount.path(base("two")) / "a-first")
            until(lambda: mount.status()["waiting"] == 1, "a request waits")
            holder, worker = mount.holder, mount.worker
            os.kill(holder, signal.SIGKILL)
            assert blocked.outcome().output == b"first of 2\n"
        until(lambda: mount.holder == worker, "the worker is the holder")
        mount.wait_for_successor(mount.kill_worker())
        while chunk := file.read(MIB):
            read += chunk
        assert read == expected
        os.kill(mount.holder, signal.SIGTERM)
        until(lambda: mount.mount() is None, "the file system is unmounted")


# ---- an upgrade


@pytest.mark.proof
def test_the_worker_is_replaced_under_load(serve: Serve, run_mount: RunMount, options: tuple[str, ...]) -> None:
    upgrades = proofs.length(2, 20)
    trees: dict[str, Tree] = {f"p-{number}": sample(number, MIB) for number in range(4)}
    with run_mount(serve(trees), *options) as mount:
        expected = [nar_hash(mount.path(base(name))) for name in trees]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(upgrades):
                hashes = pool.map(lambda name: nar_hash(mount.path(base(name))), trees)
                upgrade(mount)
                assert list(hashes) == expected
        assert mount.status()["restarts"] == upgrades
        assert mount.process.poll() is None
        assert "status" not in mount.log_text(), "no worker has crashed"


def upgrade(mount: Mounted) -> None:
    former = mount.worker
    os.kill(mount.holder, signal.SIGHUP)
    mount.wait_for_successor(former)


def test_the_worker_is_replaced_while_a_lookup_waits(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)})) as mount, upstream.fault("*.narinfo", delay=2):
        blocked = Asking("cat", mount.path(base("one")) / "a-first")
        until(lambda: mount.status()["waiting"] == 1, "a request waits")
        upgrade(mount)
        assert blocked.outcome().output == b"first of 1\n"


# ---- the end


def test_sigterm_unmounts_and_ends_all_processes(serve: Serve, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)})) as mount:
        os.lstat(mount.path(base("one")))
        worker = mount.worker
        mount.process.terminate()
        assert mount.process.wait(10) == 0
        assert mount.mount() is None
        assert os.listdir(mount.target) == []
        until(lambda: not Path(f"/proc/{worker}").exists(), "the worker has ended")
        assert not list(mount.run_dir.rglob("*.sock"))


def test_sigterm_unmounts_while_a_lookup_waits(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)})) as mount, upstream.fault("*.narinfo", delay=5):
        blocked = Asking("stat", mount.path(base("one")))
        until(lambda: mount.status()["waiting"] == 1, "a request waits")
        mount.process.terminate()
        until(lambda: mount.mount() is None, "the file system is unmounted")
        assert blocked.outcome(12).status is not None


def test_sigterm_unmounts_while_a_file_is_open(serve: Serve, run_mount: RunMount) -> None:
    """The mount disappears, and its processes end when the file is closed."""
    with run_mount(serve({"one": sample(1, 4 * MIB)}), *PLAIN) as mount:
        file = (mount.path(base("one")) / "large").open("rb")
        with file:
            mount.process.terminate()
            until(lambda: mount.mount() is None, "the file system is unmounted")
            assert file.read() == dict(files_of(sample(1, 4 * MIB)))["large"]
            assert mount.process.poll() is None
            until(lambda: "unmounted but still in use" in mount.log_text(), "a message says that the mount is in use")
        assert mount.process.wait(10) == 0


def test_a_dead_mount_is_unmounted_and_mounted_again(serve: Serve, run_mount: RunMount) -> None:
    url = serve({"one": {"x": random_bytes(1, 1000)}})
    for _ in range(2):
        with run_mount(url) as mount:
            assert (mount.path(base("one")) / "x").read_bytes() == random_bytes(1, 1000)
            os.killpg(mount.process.pid, signal.SIGKILL)  # the holder and the worker
            mount.process.wait()
            with pytest.raises(OSError, match=r"not connected|connection abort"):
                os.lstat(mount.target)
            done = mount.run("--unmount", mount.target)
            assert done.returncode == 0, done.stderr
            started = mount.run(mount.target)
            assert started.returncode == 0, started.stderr
            try:
                assert (mount.path(base("one")) / "x").read_bytes() == random_bytes(1, 1000)
            finally:
                mount.run("--unmount", mount.target)


def test_sigterm_before_the_first_worker_is_ready_ends_the_holder(tmp_path: Path) -> None:
    needs.fuse()
    slow = "import sys, time\nif 'narmount.daemon.worker' in sys.orig_argv:\n    time.sleep(60)\n"
    (tmp_path / "sitecustomize.py").write_text(slow)
    environ = environment({"PYTHONPATH": f"{tmp_path}:{ROOT}", "NAR_CACHE_DIR": str(tmp_path / "cache")})
    target = tmp_path / "mnt"
    target.mkdir()
    command = [*PROGRAM, str(target), "--foreground", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE) as holder:
        try:
            until(lambda: mounts_at(target), "the file system is mounted")
            holder.terminate()
            _, errors = holder.communicate(timeout=10)
        finally:
            holder.kill()
    assert holder.returncode == 3
    assert b"the worker did not start" in errors
    assert mounts_at(target) == []
