"""A mount shows exactly what a real Nix wrote into a binary cache, and nothing can be changed."""

import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from narmount.daemon.control import ask_prefetch, control_path, watch
from tests.builders import Tree, link
from tests.e2e import trees
from tests.e2e.links import store_path
from tests.e2e.nixcaches import NixCaches, read_narinfo
from tests.e2e.upstream import Upstream
from tests.mount import mounting
from tests.mount.conftest import RunMount
from tests.mount.mounting import BIND, OVERLAY, PLAIN, Asking, Mounted, ask, container, in_chroot, until
from tests.mount.programs import GREETING, HELLO, HELLO_PROGRAM, LIBC, PYTHON_PROGRAM, Programs
from tests.mount.samples import KEY, NARS, base, random_bytes, sample, small_files

MIB = 1 << 20
MODES = {"passthrough": (), "plain": PLAIN, "early": ("--early",)}
FS_IOC_GETFLAGS = 0x80086601  # include/uapi/linux/fs.h

Serve = Callable[..., str]


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def volume(
    mode: str, caches: NixCaches, run_mount: RunMount, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    """A mount with all trees of `tests.e2e.trees`."""
    if mode == "passthrough":
        mounting.need_passthrough(tmp_path_factory.getbasetemp())
    with Upstream() as server:
        url = server.mount("zstd", caches.cache("zstd"))
        with run_mount(url, *MODES[mode], key=caches.public_key) as mount:
            yield mount


def test_the_status_shows_the_requested_mode(volume: Mounted, mode: str) -> None:
    status = volume.status()
    assert status["mode"] == ("plain" if mode == "plain" else "passthrough")
    assert status["early"] == (mode == "early")


@pytest.mark.parametrize("tree", trees.SPECS)
def test_a_store_path_has_the_nar_hash_of_its_narinfo(volume: Mounted, caches: NixCaches, tree: str) -> None:
    path = volume.path(caches.store_paths[tree])
    expected = read_narinfo(caches.cache("zstd") / f"{caches.hash_part(tree)}.narinfo")["NarHash"]
    assert "sha256:" + mounting.nar_hash(path) == expected
    assert ["sha256:" + found for found in mounting.by_nix_hash(path)] == [expected]


@pytest.mark.parametrize("tree", trees.SPECS)
def test_attributes_are_those_of_a_nix_store(volume: Mounted, caches: NixCaches, tree: str) -> None:
    root = os.fsencode(volume.path(caches.store_paths[tree]))
    for entry in caches.entries(tree):
        seen_path = root + b"/" + entry.path if entry.path else root
        seen, source = os.lstat(seen_path), os.lstat(entry.source)
        assert stat.S_IFMT(seen.st_mode) == stat.S_IFMT(source.st_mode), entry
        if entry.kind == "symlink":
            assert os.fsencode(os.readlink(seen_path)) == entry.target  # noqa: PTH115  pathlib drops ./ and //
        else:
            assert stat.S_IMODE(seen.st_mode) == (0o555 if entry.executable or entry.kind == "directory" else 0o444)
        if entry.kind == "regular":
            assert seen.st_size == source.st_size
        assert (seen.st_uid, seen.st_gid, seen.st_mtime_ns, seen.st_ctime_ns) == (0, 0, 10**9, 10**9)


def test_inode_numbers_are_unique(volume: Mounted, caches: NixCaches) -> None:
    for tree in (trees.STDLIB_NAME, trees.NAMES_NAME):
        root = os.fsencode(volume.path(caches.store_paths[tree]))
        numbers = [os.lstat(root + b"/" + entry.path).st_ino for entry in caches.entries(tree) if entry.path]
        assert len(set(numbers)) == len(numbers)


def test_the_mount_is_read_only_without_devices_and_set_user_id(volume: Mounted) -> None:
    mount = volume.mount()
    assert mount is not None
    assert {"ro", "nosuid", "nodev"} <= set(mount.options)
    assert "default_permissions" in mount.super_options
    assert (mount.fs_type, mount.source) == ("fuse.nar-serve", "nar-serve")


def test_all_changes_are_refused(volume: Mounted, caches: NixCaches) -> None:
    path = volume.path(caches.store_paths["hello-2.12"])
    file = path / "share/doc/hello/README"
    attempts: dict[str, Callable[[], object]] = {
        "write": lambda: os.open(file, os.O_WRONLY),
        "append": lambda: os.open(file, os.O_RDWR | os.O_APPEND),
        "truncate": lambda: os.truncate(file, 0),
        "create": lambda: os.open(path / "new", os.O_WRONLY | os.O_CREAT, 0o644),
        "create in the root": lambda: os.open(volume.target / "new", os.O_WRONLY | os.O_CREAT, 0o644),
        "mkdir": lambda: (path / "new").mkdir(),
        "unlink": file.unlink,
        "rmdir": (path / "bin").rmdir,
        "rename": lambda: file.rename(path / "other"),
        "symlink": lambda: (path / "new").symlink_to("x"),
        "link": lambda: (path / "new").hardlink_to(file),
        "chmod": lambda: file.chmod(0o4755),
        "chown": lambda: os.chown(file, 1, 1),
        "utime": lambda: os.utime(file, (1, 1)),
        "setxattr": lambda: os.setxattr(file, "user.x", b"x"),
        "mknod": lambda: os.mknod(path / "new", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    }
    for what, attempt in attempts.items():
        with pytest.raises(OSError) as caught:  # noqa: PT011  the test checks the errno
            attempt()
        assert caught.value.errno == errno.EROFS, what


def test_statvfs_reports_a_full_read_only_file_system(volume: Mounted) -> None:
    status = os.statvfs(volume.target)
    assert status.f_flag & os.ST_RDONLY
    assert (status.f_namemax, status.f_bfree, status.f_bavail) == (255, 0, 0)


def test_extended_attributes_cost_no_requests(volume: Mounted, caches: NixCaches) -> None:
    """The file system has no extended attributes, and the kernel asks only once."""
    path = volume.path(caches.store_paths["hello-2.12"]) / "bin/hello"

    def ask_all() -> None:
        for name in ("user.x", "security.capability", "system.posix_acl_access"):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                os.getxattr(path, name)
            assert caught.value.errno in (errno.ENODATA, errno.ENOTSUP)
        with suppress(OSError):
            assert os.listxattr(path) == []

    ask_all()
    before = sum(volume.status()["counts"].values())
    for _ in range(100):
        ask_all()
    assert sum(volume.status()["counts"].values()) - before < 10


def test_ioctls_are_refused(volume: Mounted, caches: NixCaches) -> None:
    with (volume.path(caches.store_paths["hello-2.12"]) / "bin/hello").open("rb") as file:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fcntl.ioctl(file, FS_IOC_GETFLAGS, struct.pack("l", 0))
        assert caught.value.errno == errno.ENOTTY


def test_names_that_do_not_exist_are_missing(volume: Mounted, caches: NixCaches) -> None:
    path = volume.path(caches.store_paths["hello-2.12"])
    assert not os.path.lexists(path / "bin/none")
    with pytest.raises(NotADirectoryError):
        os.lstat(path / "bin/hello/x")
    assert not os.path.lexists(path / ("x" * 300))
    assert not os.path.lexists(os.fsencode(path) + b"/\xff\xfe")


def test_reads_at_any_offset_are_right(volume: Mounted, caches: NixCaches) -> None:
    """The lengths vary, and some reads go past the end."""
    data = (caches.tree(trees.BIG_NAME) / "data.bin").read_bytes()
    fd = os.open(volume.path(caches.store_paths[trees.BIG_NAME]) / "data.bin", os.O_RDONLY)
    try:
        for offset in (0, 1, 4095, 4096, 131_071, 131_072, len(data) // 2 + 3, len(data) - 5, len(data), len(data) + 9):
            for length in (0, 1, 4096, 131_073, 1_300_000):
                assert os.pread(fd, length, offset) == data[offset : offset + length], (offset, length)
    finally:
        os.close(fd)


def test_files_can_be_mapped_into_memory(volume: Mounted, caches: NixCaches) -> None:
    data = (caches.tree(trees.BIG_NAME) / "later.bin").read_bytes()
    with (
        (volume.path(caches.store_paths[trees.BIG_NAME]) / "later.bin").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert mapped[5_000_000:5_000_100] == data[5_000_000:5_000_100]
        assert mapped[:] == data


def test_direct_io_is_right(volume: Mounted, caches: NixCaches) -> None:
    data = (caches.tree(trees.BIG_NAME) / "data.bin").read_bytes()
    fd = os.open(volume.path(caches.store_paths[trees.BIG_NAME]) / "data.bin", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MIB) as buffer:  # aligned for O_DIRECT
            assert os.preadv(fd, [buffer], MIB) == MIB
            assert buffer[:] == data[MIB : 2 * MIB]
    finally:
        os.close(fd)


def test_find_and_grep_give_the_same_results_as_in_the_source_tree(volume: Mounted, caches: NixCaches) -> None:
    source, path = caches.tree(trees.STDLIB_NAME), volume.path(caches.store_paths[trees.STDLIB_NAME])
    for command in (["find", ".", "-type", "f"], ["grep", "-rlE", "import (os|re)$", "."]):
        here = subprocess.run(["env", "-C", path, *command], capture_output=True, check=True, timeout=60).stdout
        there = subprocess.run(["env", "-C", source, *command], capture_output=True, check=True, timeout=60).stdout
        assert sorted(here.splitlines()) == sorted(there.splitlines())
        assert here


def test_concurrent_walks_are_right(volume: Mounted, caches: NixCaches) -> None:
    paths = [volume.path(path) for path in caches.store_paths.values()]
    expected = [mounting.nar_hash(path) for path in paths]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(mounting.nar_hash, paths * 3)) == expected * 3


def test_trees_can_be_copied_by_cp_and_tar(volume: Mounted, caches: NixCaches, tmp_path: Path) -> None:
    """The copies have all attributes that these programs can copy."""
    source, path = caches.tree(trees.STDLIB_NAME), volume.path(caches.store_paths[trees.STDLIB_NAME])
    assert ask("cp", "-a", path, tmp_path / "copied").errors == ""
    assert ask("diff", "-r", source, tmp_path / "copied").status == 0
    packed = ask(
        "tar", "--create", "--xattrs", "--acls", "--selinux", "--file", tmp_path / "packed.tar", "-C", path, "."
    )
    assert packed.status == 0  # it warns that extended attributes are not supported
    assert ask("tar", "--diff", "--file", tmp_path / "packed.tar", "-C", path).status == 0
    assert ask("df", volume.target).status == 0
    assert int(ask("du", "-s", "--apparent-size", path).output.split()[0]) > 1000


def test_files_can_be_locked_and_access_is_checked(volume: Mounted, caches: NixCaches) -> None:
    path = volume.path(caches.store_paths["hello-2.12"])
    with (path / "bin/hello").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert os.access(path / "bin/hello", os.R_OK | os.X_OK)
    assert not os.access(path / "share/doc/hello/README", os.X_OK)
    assert not os.access(path / "bin/hello", os.W_OK)
    assert ask(path / "bin/hello").output == b"hello\n"


# ---- each test has its own mount


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_files_with_sizes_around_limits_are_right(serve: Serve, run_mount: RunMount, options: tuple[str, ...]) -> None:
    """The limits are those of pages, of read-ahead, and of passthrough."""
    sizes = [limit + more for limit in (4096, 16384, 131_072, 262_144, MIB) for more in (-1, 0, 1)]
    tree: dict[str, Tree] = {f"{size:08}": random_bytes(size, size) for size in sizes}
    with run_mount(serve({"sizes": tree}), *options) as mount:
        for _ in range(2):
            for name, data in tree.items():
                assert (mount.path(base("sizes")) / name).read_bytes() == data, name


def test_the_longest_names_and_links_work(serve: Serve, run_mount: RunMount) -> None:
    """They are as long as a NAR allows."""
    tree: dict[str, Tree] = {"a" * 255: b"255", "link": link("x" * 4095), "z": b"z"}
    with run_mount(serve({"long": tree})) as mount:
        path = mount.path(base("long"))
        assert set(os.listdir(path)) == set(tree)
        assert (path / ("a" * 255)).read_bytes() == b"255"
        assert os.readlink(path / "link") == "x" * 4095  # noqa: PTH115


def test_hundreds_of_store_paths_can_be_read(serve: Serve, run_mount: RunMount) -> None:
    """The mount has more store paths than NARs that may stay open at the same time."""
    names = [f"p-{number}" for number in range(400)]
    with run_mount(serve({name: {"x": name.encode()} for name in names})) as mount:
        for _ in range(2):
            with ThreadPoolExecutor(8) as pool:
                read = pool.map(lambda name: (mount.path(base(name)) / "x").read_bytes(), names)
                assert list(read) == [name.encode() for name in names]
        assert sorted(os.listdir(mount.target)) == sorted(map(base, names))
        assert len(os.listdir(f"/proc/{mount.worker}/fd")) < 400
        assert mount.status()["paths_known"] == 400


@pytest.mark.parametrize("allowed", [True, False])
def test_other_users_have_access_only_with_allow_other(serve: Serve, run_mount: RunMount, allowed: bool) -> None:
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        options = ("--allow-other",) if allowed else ()
        with mounting.mounted(Path(made) / "m", serve({"one": sample(1)}), *options, key=str(KEY.public_key)) as mount:
            (Path(made) / "m").chmod(0o755)
            nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            outcome = ask(*nobody, "cat", mount.path(base("one")) / "a-first")
            assert outcome.output == (b"first of 1\n" if allowed else b"")
            assert ask(*nobody, "sh", mount.path(base("one")) / "bin/tool").output == (b"1\n" if allowed else b"")


def test_the_root_lists_only_looked_up_paths(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1), "two": sample(2)})) as mount:
        assert os.listdir(mount.target) == []
        assert upstream.count("*.narinfo") == 0
        assert (mount.path(base("two")) / "a-first").read_bytes() == b"first of 2\n"
        until(lambda: os.listdir(mount.target) == [base("two")], "the name is listed")
        os.lstat(mount.path(base("one")))
        until(lambda: set(os.listdir(mount.target)) == {base("one"), base("two")}, "both names are listed")
        assert mount.status()["paths_known"] == 2


def test_names_that_are_not_store_paths_cause_no_requests(
    serve: Serve, upstream: Upstream, run_mount: RunMount
) -> None:
    with run_mount(serve({"one": sample(1)})) as mount:
        for name in (
            "x",
            ".git",
            "autorun.inf",
            base("one")[:32],
            f"{base('one')[:32]}-",
            "e" * 32 + "-x",
            "-" + base("one"),
        ):
            assert not os.path.lexists(mount.path(name)), name
        assert upstream.count() == 0
        assert not os.path.lexists(mount.path(f"{base('one')[:32]}-other")), "the hash is right, the name is not"
        assert upstream.count("*.narinfo") <= 1
        assert upstream.count(NARS) == 0


def test_a_name_that_is_published_later_appears(serve: Serve, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)}, name="growing")) as mount:
        assert not os.path.lexists(mount.path(base("two")))
        assert not os.path.lexists(mount.path(base("two")))
        serve({"one": sample(1), "two": sample(2)}, name="growing")
        until(lambda: os.path.lexists(mount.path(base("two"))), "it appears", 30)
        assert (mount.path(base("two")) / "z-last").read_bytes() == b"last of 2\n"


def test_repeated_lookups_of_a_missing_name_cause_few_requests(
    serve: Serve, upstream: Upstream, run_mount: RunMount
) -> None:
    with run_mount(serve({"one": sample(1)})) as mount:
        for _ in range(200):
            assert not os.path.lexists(mount.path(base("two")))
        assert upstream.count("*.narinfo") <= 2


def test_a_prefetched_closure_needs_no_store(made_programs: Programs, upstream: Upstream, run_mount: RunMount) -> None:
    url = upstream.mount("programs", made_programs.cache)
    hello, libc = store_path(HELLO), store_path(LIBC)
    with run_mount(url, key=made_programs.public_key) as mount:
        ask_prefetch(control_path(mount.run_dir, mount.target), [hello.rpartition("/")[2]], 5)
        until(lambda: upstream.count(NARS) == 2 and not mount.status()["prefetch_pending"], "both NARs are cached")
        with upstream.fault("*", drop=True):
            for path in (hello, libc):
                assert mounting.nar_hash(mount.path(path))
        assert mount.status()["paths_known"] == 2


def test_an_overlay_sees_a_new_name_after_a_remount(serve: Serve, run_mount: RunMount, tmp_path: Path) -> None:
    """An overlay looks a missing name up again only after a remount. A watcher is told when to remount.

    After the remount, the kernel has to see the name, although a lookup just before found that it was missing.
    """
    two = base("two")
    with run_mount(serve({"one": sample(1)}, name="growing")) as mount:
        script = f'echo up; while ! test -e "$root/nix/store/{two}/a-first"; do sleep 0.02; done; echo there'
        pod = Asking(*container(tmp_path / "pod", mount, OVERLAY + script))
        watching = watch(control_path(mount.run_dir, mount.target))
        assert next(watching) == []
        assert not os.path.lexists(mount.path(two))
        missed = time.monotonic()
        # The worker looks the name up again after 5 s. The last lookup by the kernel should be just before that.
        while time.monotonic() < missed + 4.3:
            assert not os.path.lexists(mount.path(two))
            time.sleep(0.01)
        assert pod.waits
        serve({"one": sample(1), "two": sample(2)}, name="growing")
        assert next(watching) == [two], "the name is announced without another lookup by a program"
        remount = f"mount -o remount {tmp_path / 'pod'}/nix/store"
        assert ask("nsenter", "--target", str(pod.process.pid), "--mount", *remount.split()).status == 0
        assert pod.outcome(5).output.split() == [b"up", b"there"]


def test_twenty_cold_containers_cause_one_download(
    made_programs: Programs, upstream: Upstream, run_mount: RunMount, tmp_path: Path
) -> None:
    url = upstream.mount("programs", made_programs.cache)
    with upstream.fault(NARS, rate=20 * MIB), run_mount(url, key=made_programs.public_key) as mount:
        pods = [
            Asking(*container(tmp_path / f"pod-{number}", mount, BIND + in_chroot(HELLO_PROGRAM)))
            for number in range(20)
        ]
        for pod in pods:
            outcome = pod.outcome()
            assert outcome.output.decode() == f"{GREETING} 1.4142\n", outcome
        assert upstream.count(NARS, "GET") == 2  # the program and its C library
        assert upstream.count("*.narinfo", "GET") == 2


@pytest.mark.parametrize("view", [BIND, OVERLAY], ids=["bind", "overlay"])
@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_python_of_the_store_runs(
    made_programs: Programs,
    upstream: Upstream,
    run_mount: RunMount,
    tmp_path: Path,
    view: str,
    options: tuple[str, ...],
) -> None:
    code = "import ssl, json, sqlite3, decimal, ctypes, sys; print(sys.prefix, json.__cached__); sqlite3.connect(':memory:')"
    url = upstream.mount("programs", made_programs.cache)
    with run_mount(url, *options, key=made_programs.public_key) as mount:
        script = view + in_chroot(PYTHON_PROGRAM, "-c", code.replace("'", '"'))
        outcome = ask(*container(tmp_path / "pod", mount, script))
        assert outcome.status == 0, outcome
        assert outcome.output.decode().split()[0] == PYTHON_PROGRAM.removesuffix("/bin/python3")
        assert "/__pycache__/" in outcome.output.decode()


def test_containers_do_not_see_each_others_changes(serve: Serve, run_mount: RunMount, tmp_path: Path) -> None:
    name = base("one")
    write = (
        f'cd "$root/nix/store/{name}"; echo mine > new; echo more >> a-first; rm z-last; mkdir bin/deeper; mv bin tools; '
        "cat new a-first; ls; "
    )
    look = f'cd "$root/nix/store/{name}"; cat a-first z-last; ls; '
    with run_mount(serve({"one": sample(1)})) as mount:
        wrote = ask(*container(tmp_path / "first", mount, OVERLAY + write))
        assert wrote.output.decode().split() == words("mine first of 1 more a-first empty large new tools"), wrote
        looked = ask(*container(tmp_path / "second", mount, OVERLAY + look))
        expected = words("first of 1 last of 1 a-first bin empty large z-last")
        assert looked.output.decode().split() == expected, looked
        assert sorted(os.listdir(mount.path(name))) == ["a-first", "bin", "empty", "large", "z-last"]


@pytest.mark.parametrize("options", [(), ("--early",)], ids=["verified", "early"])
def test_a_directory_with_many_files_is_complete(serve: Serve, run_mount: RunMount, options: tuple[str, ...]) -> None:
    wide: dict[str, Tree] = {f"{number:05}-{'x' * (number % 200)}": b"%d" % number for number in range(10_000)}
    with run_mount(serve({"wide": wide, "deep": small_files(10_000)}), *options) as mount:
        path = mount.path(base("wide"))
        assert sorted(os.listdir(path)) == sorted(wide)
        with os.scandir(path) as found:
            assert sum(entry.stat().st_size for entry in found) == sum(len(str(number)) for number in range(10_000))
        counted = ask("find", mount.path(base("deep")), "-type", "f", "-size", "4096c")
        assert counted.output.count(b"\n") == 10_000
        assert (path / "07777-").with_name(f"07777-{'x' * (7777 % 200)}").read_bytes() == b"7777"


def test_concurrent_readers_of_a_directory_see_all_names(serve: Serve, run_mount: RunMount) -> None:
    wide: dict[str, Tree] = {f"{number:04}": b"" for number in range(3000)}
    with run_mount(serve({"wide": wide})) as mount:
        path, found = mount.path(base("wide")), []
        barrier = threading.Barrier(8)

        def walk() -> None:
            barrier.wait()
            found.append(sorted(os.listdir(path)))

        threads = [threading.Thread(target=walk) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [sorted(wide)] * 8


@pytest.mark.parametrize("options", [(), PLAIN], ids=["passthrough", "plain"])
def test_the_page_cache_has_only_one_copy_of_a_file(
    serve: Serve, run_mount: RunMount, options: tuple[str, ...]
) -> None:
    """The pages of the mounted file stay; the pages of the cached file are dropped."""
    size = 64 * MIB
    with run_mount(serve({"big": {"data": random_bytes(1, size)}}, compression="none"), *options) as mount:
        path = mount.path(base("big")) / "data"
        os.lstat(path)
        os.sync()  # pages that are not on the disk yet can't be dropped
        assert len(path.read_bytes()) == size
        assert mounting.resident(path) >= 0.9 * size or not options
        cached = sum(mounting.resident(file) for file in mount.cache_dir.rglob("*") if file.is_file())
        assert cached + (mounting.resident(path) if options else 0) <= 1.3 * size


def words(text: str) -> list[str]:
    return text.split()


def test_a_mount_in_the_foreground_can_be_shown_and_unmounted(
    serve: Serve, upstream: Upstream, run_mount: RunMount
) -> None:
    url = serve({"one": sample(1)})
    with run_mount(url) as mount:
        (mount.path(base("one")) / "large").read_bytes()
        shown = mount.run("--status", mount.target)
        assert shown.returncode == 0
        assert str(mount.target) in shown.stdout
        assert "passthrough" in shown.stdout
        as_json = mount.run("--status", mount.target, "--json")
        assert '"worker_pid"' in as_json.stdout
        done = mount.run("--unmount", mount.target)
        assert done.returncode == 0, done.stderr
        assert mount.process.wait(10) == 0
        assert mount.mount() is None
        assert not list(mount.run_dir.rglob("*.sock"))


def test_a_mount_in_the_background_does_not_disturb_another(serve: Serve, run_mount: RunMount, tmp_path: Path) -> None:
    """Without --foreground the command ends when it is mounted."""
    with run_mount(serve({"one": sample(1)})) as mount:
        target = tmp_path / "second"
        target.mkdir()
        try:
            started = mount.run(target)
            assert started.returncode == 0, started.stderr
            assert (target / base("one") / "a-first").read_bytes() == b"first of 1\n"
            assert (mount.path(base("one")) / "a-first").read_bytes() == b"first of 1\n"
            again = mount.run(target)
            assert again.returncode != 0, "it is already mounted"
            assert mount.run("--unmount", target).returncode == 0
        finally:
            mount.run("--unmount", target)
            mounting.unmount_all(target)


def test_the_holder_ends_when_another_program_unmounts(serve: Serve, run_mount: RunMount) -> None:
    with run_mount(serve({"one": sample(1)})) as mount:
        os.lstat(mount.path(base("one")))
        mounting.unmount_all(mount.target)
        assert mount.process.wait(10) == 0


def test_a_target_that_is_not_a_directory_is_refused(serve: Serve, run_mount: RunMount, tmp_path: Path) -> None:
    with run_mount(serve({"one": sample(1)})) as mount:
        (tmp_path / "file").write_text("")
        for target in (tmp_path / "none", tmp_path / "file"):
            done = mount.run(target)
            assert done.returncode not in (0, 1), done
            assert str(target) in done.stderr
            assert "Traceback" not in done.stderr
