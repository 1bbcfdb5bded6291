"""Binary caches that a real Nix wrote, and variants of them that other programs write.

`build` makes all of them once and keeps them in the user's cache directory, under a hash of everything that they are
made from; `E2E_CACHE_DIR` moves that directory. Nix runs on a store below a temporary root: no daemon, no network,
nothing under /nix.
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
from functools import partial
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
"""Caches that Nix writes, with the parameters of their store URL."""

RECOMPRESSED = {
    "zstd-frames": ("zstd", "zst", "split --bytes=1M --filter='zstd -qc1'"),
    "gzip-members": ("gzip", "nar", "split --bytes=1M --filter='gzip -c1'"),
    "bzip2-streams": ("bzip2", "bz2", "split --bytes=2M --filter='bzip2 -c1'"),
    "xz-streams": ("xz", "xz", "split --bytes=1M --filter='xz -c0'"),
    "xz-blocks": ("xz", "xz", "xz -c0 --block-size=1MiB"),
    "lzip-members": ("lzip", "lzip", "split --bytes=4M --filter='lzip -c0'"),
    "lzma": ("lzma", "lzma", "xz -c0 --format=lzma"),
}
"""Caches whose NARs are compressed again by a command line tool: Compression, extension, and the command.

All are legal, and not what Nix 2.8 writes: newer Nix writes zstd in frames, other tools concatenate; Nix aborts on
reading its own lzma.
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
"""Caches like ``zstd``, with the listings as other caches have them."""

CACHES = (*NIX_CACHES, *RECOMPRESSED, *RELISTED)
"""The names of all caches that hold all trees."""


@dataclass(frozen=True, slots=True)
class NixCaches:
    """What was built. ``store_paths`` has the full store path of each tree by its name."""

    directory: Path
    store_paths: dict[str, str]
    gnu_store_path: str
    public_key: str

    def cache(self, name: str) -> Path:
        """The files of a cache: one of `CACHES`, or ``gnu``, whose store dir is /gnu/store and which holds one tree."""
        return self.directory / "caches" / name

    def tree(self, name: str) -> Path:
        """The source tree, as it was given to Nix."""
        return self.directory / "trees" / name

    def entries(self, name: str) -> Iterator[trees.Entry]:
        """The nodes of the source tree."""
        return trees.walk(self.tree(name))

    def hash_part(self, name: str) -> str:
        """The hash part of a tree's store path."""
        return self.store_paths[name].removeprefix(links.STORE_DIR + "/")[:32]

    def nar(self, name: str) -> bytes:
        """The NAR of a tree, as Nix wrote it into the cache without compression."""
        url = read_narinfo(self.cache("none") / f"{self.hash_part(name)}.narinfo")["URL"]
        return (self.cache("none") / url).read_bytes()

    def listing(self, name: str) -> Any:
        """The listing of a tree, as Nix wrote it, with every narOffset."""
        return parse_listing((self.cache("none") / f"{self.hash_part(name)}.ls").read_bytes())


def parse_listing(raw: bytes) -> Any:
    """JSON that may hold bytes that are not UTF-8, as Nix 2.8 writes them."""
    return json.loads(raw.decode("utf-8", "surrogateescape"))


def read_narinfo(path: Path) -> dict[str, str]:
    """The fields of a narinfo."""
    return dict(line.split(": ", 1) for line in path.read_text().splitlines())


def build() -> NixCaches:
    """The caches: those of an earlier run if nothing changed since, else built now, by one process at a time.

    Skips the test if a program is not installed.
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
    found = json.loads((directory / "manifest.json").read_text())
    return NixCaches(directory, found["store_paths"], found["gnu_store_path"], found["public_key"])


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
    """One run of the recipe, all of it below ``directory``; what is to be kept ends up in ``done``."""

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
            _all(pool.submit(self.write, name).result for name in NIX_CACHES)
            _all(pool.submit(self.recompress, name, *RECOMPRESSED[name]).result for name in RECOMPRESSED)
        for name, encode in RELISTED.items():
            self.relist(name, encode)
        gnu_store_path = self.write_gnu()
        manifest = {"store_paths": self.store_paths, "gnu_store_path": gnu_store_path, "public_key": public_key}
        (self.done / "manifest.json").write_text(json.dumps(manifest))

    def write(self, name: str) -> None:
        """Let Nix write a cache. Its brotli knows the slowest level only, so the tool does the large trees."""
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
            path.unlink()  # a hard link: writing into it would change the other cache
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
    """The programs of Nix, bound to one store."""

    def __init__(self, directory: Path, store: str) -> None:
        self._directory = directory
        self._store = store
        home = directory / "home"
        home.mkdir(exist_ok=True)
        (home / "nix.conf").write_text(
            "experimental-features = nix-command\nbuild-users-group =\nsubstituters =\nsandbox = false\n"
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIX_", "XDG_"))}
        self._environ = kept | {"NIX_REMOTE": store, "NIX_CONF_DIR": str(home), "HOME": str(home)}

    def _run(self, *command: str | Path, data: bytes | None = None) -> str:
        done = subprocess.run(command, input=data, capture_output=True, env=self._environ, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[:3]} failed: {done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout.decode("ascii", "replace").strip()

    def add(self, name: str, tree: Path, spec: trees.Spec) -> str:
        """Add a tree to the store; gives its store path."""
        if spec.content_addressed:
            return self._run("nix", "store", "add-path", "--name", name, tree)
        self.import_path(tree, links.store_path(name), tuple(map(links.store_path, spec.references)))
        return links.store_path(name)

    def import_path(self, tree: Path, store_path: str, references: Iterable[str]) -> None:
        """Add a tree under a store path of our choice, with references, out of what `nix-store --export` writes."""
        command = ["nix-store", "--dump", str(tree)]
        dump = subprocess.run(command, stdout=subprocess.PIPE, env=self._environ, check=True).stdout
        texts = sorted(reference.encode() for reference in references)
        exported = [_u64(1), dump, _u64(0x4558494E), _string(store_path.encode()), _u64(len(texts))]
        exported += [*map(_string, texts), _string(b""), _u64(0), _u64(0)]  # no deriver, no signature, no other path
        self._run("nix-store", "--import", data=b"".join(exported))

    def sign(self) -> str:
        """Sign all paths with a new key; gives the public key."""
        secret, public = self._directory / "key.sk", self._directory / "key.pk"
        self._run("nix-store", "--generate-binary-cache-key", KEY_NAME, secret, public)
        self._run("nix", "store", "sign", "-k", secret, "--all")
        return public.read_text().strip()

    def copy(self, target: str, store_paths: Iterable[str]) -> None:
        """Write paths into a binary cache."""
        self._run("nix", "copy", "--from", self._store, "--to", target, *store_paths)


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _string(text: bytes) -> bytes:
    return _u64(len(text)) + text + bytes(-len(text) % 8)


def _all(results: Iterable[Callable[[], None]]) -> None:
    for result in list(results):
        result()


def _recompress(source: Path, target: Path, compression: str, extension: str, command: str) -> None:
    """Write a cache like the uncompressed ``source``, each NAR put through ``command``, each narinfo changed to fit."""
    (target / "nar").mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix == ".narinfo":
            fields = partial(_packed, source, target, compression, extension, command)
            (target / path.name).write_text(_with_fields(path.read_text(), fields(read_narinfo(path)["URL"])))
        elif path.is_file():
            (target / path.name).unlink(missing_ok=True)
            os.link(path, target / path.name)


def _packed(source: Path, target: Path, compression: str, extension: str, command: str, url: str) -> dict[str, str]:
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
