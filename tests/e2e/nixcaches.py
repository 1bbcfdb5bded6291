"""Binary caches written by Nix, and variants of them as other programs write them.

`build` writes all of them once, into a directory of the user's cache directory (or of `E2E_CACHE_DIR`) that is named by a hash of
everything they are built from. Nix uses a store below a temporary root: no daemon, no network, nothing under /nix.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli

from narcore.formats import nixbase32
from tests import needs
from tests.e2e import links, trees

TOOLS = ("nix", "nix-store", "xz", "zstd", "bzip2", "gzip", "lzip", "brotli", "split", "curl")
KEY_NAME = "nar-serve-tests-1"
GNU_STORE_DIR = "/gnu/store"
GNU_NAME = "hello-gnu"

NIX_CACHES = {
    "none": "compression=none",
    "xz": "compression=xz&compression-level=1",
    "xz-parallel": "compression=xz&compression-level=0&parallel-compression=1",
    "bzip2": "compression=bzip2",
    "gzip": "compression=gzip",
    "zstd": "compression=zstd",
    "br": "compression=br",
    "lz4": "compression=lz4",
    "lzip": "compression=lzip&compression-level=1",
}
"""Caches written by Nix, with the parameters of their store URLs."""

RECOMPRESSED = {
    "zstd-frames": ("zstd", "zst", "split --bytes=1M --filter='zstd -qc1'"),
    "gzip-members": ("gzip", "nar", "split --bytes=1M --filter='gzip -c1'"),
    "bzip2-streams": ("bzip2", "bz2", "split --bytes=2M --filter='bzip2 -c1'"),
    "xz-streams": ("xz", "xz", "split --bytes=1M --filter='xz -c0'"),
    "xz-blocks": ("xz", "xz", "xz -c0 --block-size=1MiB"),
    "lzip-members": ("lzip", "lzip", "split --bytes=4M --filter='lzip -c0'"),
    "lzma": ("lzma", "lzma", "xz -c0 --format=lzma"),
}
"""Caches whose NARs are recompressed by a command-line tool: Compression, extension, and the command.

All are valid, but Nix 2.8 does not write them: newer Nix writes zstd in several frames, other tools concatenate streams, and
Nix aborts when it reads the lzma that it wrote itself.
"""


def _without_offsets(raw: bytes) -> bytes:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(child) for key, child in value.items() if key != "narOffset" or isinstance(child, dict)}
        return value

    text = json.dumps(strip(parse_listing(raw)), ensure_ascii=False)
    return text.encode("utf-8", "surrogateescape")


def _by_command(*command: str) -> Callable[[bytes], bytes]:
    return lambda raw: subprocess.run(command, input=raw, stdout=subprocess.PIPE, check=True).stdout


RELISTED: dict[str, Callable[[bytes], bytes]] = {
    "ls-br": lambda raw: bytes(brotli.compress(raw, quality=5)),
    "ls-zstd": _by_command("zstd", "-qc"),
    "ls-xz": _by_command("xz", "-c"),
    "ls-gzip": _by_command("gzip", "-cn"),
    "ls-no-offsets": _without_offsets,
}
"""Caches like ``zstd``, with listings that are encoded differently or lack offsets, as in other caches."""

CACHES = (*NIX_CACHES, *RECOMPRESSED, *RELISTED)
"""The names of all caches that contain all trees."""


@dataclass(frozen=True, slots=True)
class NixCaches:
    """The caches and trees that `build` made. ``store_paths`` maps the name of a tree to its store path."""

    directory: Path
    store_paths: dict[str, str]
    gnu_store_path: str
    public_key: str

    def cache(self, name: str) -> Path:
        """Return the directory of a cache of `CACHES`, or of ``gnu``, which contains one tree and has the store dir /gnu/store."""
        return self.directory / "caches" / name

    def tree(self, name: str) -> Path:
        """Return the directory of a source tree, as it was added to Nix."""
        return self.directory / "trees" / name

    def entries(self, name: str) -> Iterator[trees.Entry]:
        """Return the nodes of a source tree."""
        return trees.walk(self.tree(name))

    def hash_part(self, name: str) -> str:
        """Return the hash part of the store path of a tree."""
        return self.store_paths[name].removeprefix(links.STORE_DIR + "/")[:32]

    def nar(self, name: str) -> bytes:
        """Return the NAR of a tree, as Nix wrote it into the uncompressed cache."""
        url = read_narinfo(self.cache("none") / f"{self.hash_part(name)}.narinfo")["URL"]
        return (self.cache("none") / url).read_bytes()

    def listing(self, name: str) -> Any:
        """Return the listing of a tree, as Nix wrote it, with narOffset for all files."""
        return parse_listing((self.cache("none") / f"{self.hash_part(name)}.ls").read_bytes())


def parse_listing(raw: bytes) -> Any:
    """Parse a listing, which may contain bytes that are not UTF-8: Nix 2.8 writes them unchanged."""
    return json.loads(raw.decode("utf-8", "surrogateescape"))


def read_narinfo(path: Path) -> dict[str, str]:
    """Return the fields of a narinfo."""
    return dict(line.split(": ", 1) for line in path.read_text().splitlines())


def build() -> NixCaches:
    """Return the caches of an earlier run, or build them if there are none or a source has changed.

    Only one process builds at a time. Skips the test if a program of `TOOLS` is not installed.
    """
    needs.programs(TOOLS)
    home = Path(os.environ.get("E2E_CACHE_DIR") or _user_cache() / "nar-serve-tests")
    home.mkdir(parents=True, exist_ok=True)
    directory = home / _key()
    with _locked(home / "lock"):
        if not directory.exists():
            _remove_old(home)
            with tempfile.TemporaryDirectory(prefix="building-", dir=home) as building:
                _Build(Path(building)).run()
                (Path(building) / "done").rename(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    return NixCaches(directory, manifest["store_paths"], manifest["gnu_store_path"], manifest["public_key"])


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _key() -> str:
    version = subprocess.run(["nix", "--version"], stdout=subprocess.PIPE, check=True).stdout
    parts = [version, sys.version.encode(), links.store_path("x").encode()]
    parts += [Path(str(module.__file__)).read_bytes() for module in (sys.modules[__name__], trees, links)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_old(home: Path, days: float = 2) -> None:
    for child in home.iterdir():
        if child.is_dir() and child.stat().st_mtime < time.time() - days * 86400:
            shutil.rmtree(child, ignore_errors=True)


class _Build:
    """Builds all caches below ``directory``. The result is in ``directory/done``, the other files are temporary."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.done = directory / "done"
        self.trees = self.done / "trees"
        self.caches = self.done / "caches"
        self.store_paths: dict[str, str] = {}
        self.nix = _Nix(directory, f"local?root={directory}/store")
        self.gnu = _Nix(directory, f"local?root={directory}/gnu&store={GNU_STORE_DIR}")

    def run(self) -> None:
        self.trees.mkdir(parents=True)
        trees.make_trees(self.trees)
        for name, spec in trees.SPECS.items():
            self.store_paths[name] = self.nix.add(name, self.trees / name, spec)
        public_key = self.nix.sign()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            _wait_for_all(pool.submit(self.write, name).result for name in NIX_CACHES)
            _wait_for_all(pool.submit(self.recompress, name, *RECOMPRESSED[name]).result for name in RECOMPRESSED)
        for name, encode in RELISTED.items():
            self.relist(name, encode)
        gnu_store_path = self.write_gnu()
        manifest = {"store_paths": self.store_paths, "gnu_store_path": gnu_store_path, "public_key": public_key}
        (self.done / "manifest.json").write_text(json.dumps(manifest))

    def write(self, name: str) -> None:
        """Let Nix write a cache. Nix compresses with the slowest level of brotli only, so ``brotli`` compresses the large trees."""
        slow = [self.store_paths[tree] for tree, spec in trees.SPECS.items() if spec.slow and name == "br"]
        paths = [path for path in self.store_paths.values() if path not in slow]
        self.nix.copy(f"file://{self.caches / name}?{NIX_CACHES[name]}&write-nar-listing=1", paths)
        if slow:
            uncompressed = self.directory / "for-brotli"
            self.nix.copy(f"file://{uncompressed}?{NIX_CACHES['none']}&write-nar-listing=1", slow)
            _recompress(uncompressed, self.caches / name, "br", "br", "brotli -c -q 1")

    def recompress(self, name: str, compression: str, extension: str, command: str) -> None:
        _recompress(self.caches / "none", self.caches / name, compression, extension, command)

    def relist(self, name: str, encode: Callable[[bytes], bytes]) -> None:
        shutil.copytree(self.caches / "zstd", self.caches / name, copy_function=os.link)
        for path in (self.caches / name).glob("*.ls"):
            raw = path.read_bytes()
            path.unlink()  # it is a hard link: writing to it would change the cache ``zstd``
            path.write_bytes(encode(raw))

    def write_gnu(self) -> str:
        tree = self.trees / GNU_NAME
        trees.write(tree, {"bin/x": trees.SCRIPT, "share/y": b"y"}, executable=("bin/x",))
        store_path = links.store_path(GNU_NAME).replace(links.STORE_DIR, GNU_STORE_DIR)
        trees.symlinks(tree, {b"absolute": f"{store_path}/share/y".encode(), b"other": b"/nix/store/x"})
        self.gnu.import_path(tree, store_path, ())
        target = f"file://{self.caches / 'gnu'}?store={GNU_STORE_DIR}&compression=xz&write-nar-listing=1"
        self.gnu.copy(target, [store_path])
        return store_path


class _Nix:
    """Runs Nix on one store."""

    def __init__(self, directory: Path, store: str) -> None:
        self._directory = directory
        self._store = store
        home = directory / "home"
        home.mkdir(exist_ok=True)
        (home / "nix.conf").write_text(
            "experimental-features = nix-command\nbuild-users-group =\nsubstituters =\nsandbox = false\n"
        )
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NIX_", "XDG_"))}
        self._environ = inherited | {"NIX_REMOTE": store, "NIX_CONF_DIR": str(home), "HOME": str(home)}

    def _run(self, *command: str | Path, data: bytes | None = None) -> str:
        done = subprocess.run(command, input=data, capture_output=True, env=self._environ, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[:3]} failed: {done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout.decode("ascii", "replace").strip()

    def add(self, name: str, tree: Path, spec: trees.Spec) -> str:
        """Add a tree to the store; returns its store path."""
        if spec.content_addressed:
            return self._run("nix", "store", "add-path", "--name", name, tree)
        self.import_path(tree, links.store_path(name), tuple(map(links.store_path, spec.references)))
        return links.store_path(name)

    def import_path(self, tree: Path, store_path: str, references: Iterable[str]) -> None:
        """Add a tree under a given store path, with references: builds the format of `nix-store --export` and imports it."""
        command = ["nix-store", "--dump", str(tree)]
        dump = subprocess.run(command, stdout=subprocess.PIPE, env=self._environ, check=True).stdout
        texts = sorted(reference.encode() for reference in references)
        exported = [_u64(1), dump, _u64(0x4558494E), _string(store_path.encode()), _u64(len(texts))]
        exported += [*map(_string, texts), _string(b""), _u64(0), _u64(0)]  # no deriver, no signature, no other path
        self._run("nix-store", "--import", data=b"".join(exported))

    def sign(self) -> str:
        """Sign all paths with a new key; returns the public key."""
        secret, public = self._directory / "key.sk", self._directory / "key.pk"
        self._run("nix-store", "--generate-binary-cache-key", KEY_NAME, secret, public)
        self._run("nix", "store", "sign", "-k", secret, "--all")
        return public.read_text().strip()

    def copy(self, target: str, store_paths: Iterable[str]) -> None:
        """Copy store paths to a binary cache."""
        self._run("nix", "copy", "--from", self._store, "--to", target, *store_paths)


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _string(text: bytes) -> bytes:
    return _u64(len(text)) + text + bytes(-len(text) % 8)


def _wait_for_all(results: Iterable[Callable[[], None]]) -> None:
    for result in list(results):  # a list, so that all tasks are submitted first
        result()


def _recompress(source: Path, target: Path, compression: str, extension: str, command: str) -> None:
    """Write a copy of the uncompressed cache ``source``, with each NAR compressed by ``command`` and each narinfo adapted."""
    (target / "nar").mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix == ".narinfo":
            url = read_narinfo(path)["URL"]
            fields = _compress_nar(source, target, compression, extension, command, url)
            (target / path.name).write_text(_with_fields(path.read_text(), fields))
        elif path.is_file():
            (target / path.name).unlink(missing_ok=True)
            os.link(path, target / path.name)


def _compress_nar(
    source: Path, target: Path, compression: str, extension: str, command: str, url: str
) -> dict[str, str]:
    """Compress the NAR at ``url`` of ``source`` into ``target``; returns the changed fields of its narinfo."""
    with (source / url).open("rb") as nar:
        packed = subprocess.run(command, shell=True, stdin=nar, stdout=subprocess.PIPE, check=True).stdout
    digest = nixbase32.encode(hashlib.sha256(packed).digest())
    new_url = f"nar/{digest}.nar" if extension == "nar" else f"nar/{digest}.nar.{extension}"
    (target / new_url).write_bytes(packed)
    size = str(len(packed))
    return {"URL": new_url, "Compression": compression, "FileHash": f"sha256:{digest}", "FileSize": size}


def _with_fields(narinfo: str, fields: dict[str, str]) -> str:
    lines = (line.split(": ", 1) for line in narinfo.splitlines())
    return "".join(f"{key}: {fields.get(key, value)}\n" for key, value in lines)
