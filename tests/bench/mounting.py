"""Files of a mount, against the same files on the local file system. The same C program (mounting.c) reads both."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tests.bench.material import CacheDirectory, Packed, settle_disk, write_file, write_tree
from tests.bench.report import MB, Row, against, alternate, at_least
from tests.bench.setup import Setup
from tests.mount import programs
from tests.mount.mounting import PLAIN, Mounted, mounted
from tests.mount.programs import PYTHON_PROGRAM

FILES, SIZE = 10_000, 4096
MODES: Mapping[str, tuple[str, ...]] = {"passthrough": (), "plain": PLAIN}
LOCAL = "local"
STARTS = 10
IMPORTS = "import ssl, json, sqlite3, decimal, email.message, argparse"


@dataclass(frozen=True, slots=True)
class _Material:
    """The mounted store paths, and the same files below ``local``: one large file, and small files in two store paths.

    ``pythons`` has the Python program of the store, and ``loop`` is the C program.
    """

    directory: Path
    urls: str
    large: Packed
    small: tuple[Packed, Packed]
    local: Path
    pythons: Path
    loop: Path

    def seconds(self, *arguments: str | Path | int) -> float:
        return _seconds([self.loop, *map(str, arguments)])


def _seconds(command: list[str | Path]) -> float:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def mount(setup: Setup) -> Iterator[Row]:
    """Files and programs from `nar-serve mount`, with and without passthrough, against the local file system."""
    material = _material(setup)
    yield from _cold(setup, material)
    with ExitStack() as stack:
        mounts = {mode: stack.enter_context(_mounted(material, mode, f"warm-{mode}")) for mode in MODES}
        yield from _warm(setup, material, mounts)
        yield from _starts(setup, material, mounts)


def _material(setup: Setup) -> _Material:
    directory, local = setup.directory, setup.directory / "local/store"  # as deep as the mounted paths
    write_file(local / "large/data", setup.large)
    for number in range(FILES):
        path = local / f"small/d{number // 100:03}/f{number % 100:02}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%05d" % number + bytes(range(1, 256)) * 17)
        with path.open("r+b") as file:
            file.truncate(SIZE)
    upstream = CacheDirectory(directory / "upstream")
    large = upstream.add("large", write_tree(local / "large", directory / "large.nar"), "zstd")
    nar = write_tree(local / "small", directory / "small.nar")
    small = upstream.add("small", nar, "zstd"), upstream.add("small-too", nar, "zstd")
    (directory / "programs").mkdir()
    built = programs.build(directory / "programs")
    loop = directory / "loop"
    subprocess.run(["gcc", "-O2", "-static", "-o", loop, Path(__file__).with_suffix(".c")], check=True)
    settle_disk()
    return _Material(directory, f"{upstream.url} {built.cache.as_uri()}", large, small, local, built.trees, loop)


def _mounted(material: _Material, mode: str, name: str) -> AbstractContextManager[Mounted]:
    """Create a new mount, which the kernel has not cached yet; it uses the disk cache of its mode."""
    directory = material.directory / name
    cache_dir = material.directory / f"cache-{mode}"
    settings = {"NAR_CACHE_SIZE": "20G", "NAR_MOUNT_DEADLINE": "60"}
    return mounted(directory, material.urls, *MODES[mode], cache_dir=cache_dir, settings=settings)


# ---- first reads


def _cold(setup: Setup, material: _Material) -> Iterator[Row]:
    for mode in MODES:
        with _mounted(material, mode, f"fetch-{mode}") as mount:
            for packed in (material.large, *material.small):
                mount.path(packed.store_path.base_name).lstat()
    settle_disk()
    local = _warm_local(material)
    runs = [{mode: _measure_cold(material, mode, f"cold-{run}-{mode}") for mode in MODES} for run in range(setup.runs)]
    for mode in MODES:
        seconds = {what: median(run[mode][what] for run in runs) for what in local}
        size = setup.large / MB
        yield against(
            f"{size:.0f} MB, first read, {mode}",
            size / seconds["read"],
            size / local["read"],
            "MB/s",
            peer_name="local, cached",
        )
        yield at_least(f"lookups of {FILES:,} files, first time, {mode}", FILES / seconds["stat"], "/s", 10_000)
        for what, label in (("files", "4 KiB files, first read"), ("absent", "lookups of missing names, first time")):
            yield against(
                f"{label}, {mode}", FILES / seconds[what], FILES / local[what], "/s", peer_name="local, cached"
            )


def _warm_local(material: _Material) -> Mapping[str, float]:
    seconds = {}
    for _ in range(2):  # the first pass fills the page cache
        seconds = {what: _loop(material, material.local / "small", what, 1) for what in ("stat", "files", "absent")}
        seconds["read"] = material.seconds("read", material.local / "large/data")
    return seconds


def _measure_cold(material: _Material, mode: str, name: str) -> Mapping[str, float]:
    with _mounted(material, mode, name) as mount:
        large, small, other_small = (
            mount.path(packed.store_path.base_name) for packed in (material.large, *material.small)
        )
        for path in (large, small, other_small):
            path.lstat()
        return {
            "stat": _loop(material, small, "stat", 1),
            "files": _loop(material, other_small, "files", 1),
            "absent": _loop(material, small, "absent", 1),
            "read": material.seconds("read", large / "data"),
        }


def _loop(material: _Material, root: Path, what: str, rounds: int) -> float:
    return material.seconds(what, root, FILES, rounds)


# ---- repeated reads


def _warm(setup: Setup, material: _Material, mounts: Mapping[str, Mounted]) -> Iterator[Row]:
    small = {mode: mount.path(material.small[0].store_path.base_name) for mode, mount in mounts.items()}
    large = {mode: mount.path(material.large.store_path.base_name) / "data" for mode, mount in mounts.items()}
    small[LOCAL], large[LOCAL] = material.local / "small", material.local / "large/data"
    size = setup.large / MB
    for path in large.values():
        material.seconds("read", path)
    seconds = alternate(setup.runs, *(partial(material.seconds, "read", path) for path in large.values()))
    yield from _against_local(f"{size:.0f} MB, read again", size, seconds, "MB/s", {"passthrough": 0.8})
    for what, rounds, label, goals in (
        ("files", 3, "4 KiB files, read again", {}),
        ("stat", 10, "stat, again", dict.fromkeys(MODES, 0.8)),
    ):
        for path in small.values():
            _loop(material, path, what, 1)
        seconds = alternate(setup.runs, *(partial(_loop, material, path, what, rounds) for path in small.values()))
        yield from _against_local(label, FILES * rounds, seconds, "/s", goals)


def _against_local(
    what: str, count: float, seconds: list[float], unit: str, goals: Mapping[str, float]
) -> Iterator[Row]:
    """Yield a row for each mode. ``seconds`` has the durations of all modes, then that of the local file system."""
    for mode, duration in zip(MODES, seconds, strict=False):
        yield against(
            f"{what}, {mode}", count / duration, count / seconds[-1], unit, peer_name=LOCAL, at_least=goals.get(mode)
        )


# ---- programs


def _starts(setup: Setup, material: _Material, mounts: Mapping[str, Mounted]) -> Iterator[Row]:
    """Start Python in a chroot whose /nix/store is the mount, or a directory with the same contents."""
    stores = {mode: mount.target for mode, mount in mounts.items()} | {LOCAL: material.pythons}
    first = {mode: _start(material, mode, store, 1) for mode, store in stores.items()}
    repeated = alternate(
        setup.runs, *(partial(_start, material, mode, store, STARTS) for mode, store in stores.items())
    )
    own = dict(zip(stores, (seconds / STARTS for seconds in repeated), strict=True))
    for mode in MODES:
        yield Row(f"start of Python, first time, fetched from the store, {mode}", f"{first[mode] * 1000:,.0f} ms")
        ratio = own[mode] / own[LOCAL]
        yield Row(
            f"start of Python, {mode}", f"{own[mode] * 1000:,.1f} ms", f"{own[LOCAL] * 1000:,.1f} ms {LOCAL}",
            ratio, "<= 1.3", ratio <= 1.3,
        )  # fmt: skip


def _start(material: _Material, mode: str, store: Path, times: int) -> float:
    root = material.directory / f"root-{mode}"
    (root / "nix/store").mkdir(parents=True, exist_ok=True)
    shutil.copy(material.loop, root / "loop")
    script = f'mount --bind "{store}" "{root}/nix/store"; exec chroot "{root}" /loop spawn {times} "$@"'
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh"]
    return _seconds([*inside, PYTHON_PROGRAM, "-c", IMPORTS])
