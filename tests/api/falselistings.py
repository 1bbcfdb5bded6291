"""Servers whose store sends a wrong listing (``.ls``), and requests that show what they make of it.

Each lie describes another tree with the same NarSize, so that only the NAR itself shows that the listing is wrong. The truth is
what a server answers from the verified NAR. As a program, this module asks a new server for every path of both trees in every form:

    python -m tests.api.falselistings
"""

import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

from flask.testing import FlaskClient

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.errors import NarcoreError
from narcore.settings import Settings
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from tests.builders import Tree, as_text, binary_cache, entries, exe, hash_part, link, listing_json, nar, store_path

UNVERIFIED = "public, max-age=300"
# Larger than remoteparts.WHOLE_SIZE, so that files of the uncompressed NAR are read by range.
PADDING = 1_200_000

TRUE: dict[str, Tree] = {
    "README": b"read me",
    "data": bytes(range(250)) * 4,
    "dir": {"index.html": b"<p>hello", "sub": {}},
    "empty": b"",
    "link": link("data"),
    "program": exe(b"#!/bin/sh"),
    "top": {"f": b"1", "g": link("f")},
    "zero": bytes(PADDING),
}


def changed(**entries: Tree | None) -> dict[str, Tree]:
    """Return TRUE with other entries (None removes one), and ``zero`` so much longer or shorter that the NAR has the same size."""
    tree = {name: entry for name, entry in (TRUE | entries).items() if entry is not None}
    tree["zero"] = bytes(PADDING + len(nar(TRUE)) - len(nar(tree)))
    return tree


LIES: dict[str, dict[str, Tree]] = {
    "a file is empty": changed(data=b""),
    "all files are empty": changed(README=b"", data=b"", program=exe(b""), dir={"index.html": b"", "sub": {}}),
    "an empty file is not empty": changed(empty=bytes(2000)),
    "a file is one byte shorter": changed(data=bytes(999)),
    "a file is longer": changed(data=bytes(5000)),
    "a file is a directory": changed(data={}),
    "a file is a link": changed(data=link("README")),
    "a directory is a file": changed(dir=b"file"),
    "a directory is a link": changed(dir=link("top")),
    "a link is a file": changed(link=b"link"),
    "a file is executable": changed(data=exe(bytes(1000))),
    "a program is not executable": changed(program=b"#!/bin/sh"),
    "a name is missing": changed(data=None),
    "a name is extra": changed(evil=b"evil"),
    "a name is different": changed(data=None, date=bytes(1000)),
    "a link leads elsewhere": changed(link=link("README")),
    "a link leads out of the store path": changed(link=link(str(store_path("evil")))),
    "an index.html is missing": changed(dir={"sub": {}}),
    "an index.html is extra": changed(top={"f": b"1", "g": link("f"), "index.html": b"evil"}),
    "a README is longer": changed(README=bytes(20)),
}


def entries_of(tree: Mapping[str, Tree], prefix: str = "") -> Iterator[tuple[str, Tree]]:
    """Yield the path and the entry of every node below the root. The path of a directory ends in a slash."""
    for name, entry in tree.items():
        if isinstance(entry, Mapping):
            yield f"{prefix}/{name}/", entry
            yield from entries_of({as_text(child): below for child, below in entries(entry)}, f"{prefix}/{name}")
        else:
            yield f"{prefix}/{name}", entry


QUERIES = ("", "?view", "?list", "?format=json", "?format=json&recursive", "?format=nar", "?format=tar", "?format=zip")


class Asked(NamedTuple):
    url: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()


def requests(*trees: Mapping[str, Tree]) -> list[Asked]:
    """Return a request for every path in any of the trees, in every form; the padding only as a part of its directory."""
    return requests_of({"/", "/nothing"} | {path for tree in trees for path, _entry in entries_of(tree)})


def requests_about(lie: Mapping[str, Tree]) -> list[Asked]:
    """Return the requests for the paths that TRUE and ``lie`` describe differently, and for their links."""
    seen = [{(path, repr(entry)) for path, entry in entries_of(tree)} for tree in (TRUE, lie)]
    return requests_of({path for path, _entry in seen[0] ^ seen[1]})


def requests_of(found: set[str]) -> list[Asked]:
    """Return a request for each path in every form, with and without a slash at its end; not for the padding."""
    found = {path.rstrip("/") for path in found} | {path.rstrip("/") + "/" for path in found}
    root = f"/nix/store/{hash_part('x')}-x"
    urls = [f"{root}{path}" for path in sorted(found) if path.strip("/") != "zero"]
    asked = [Asked(f"{url}{query}") for url in urls for query in QUERIES]
    asked += [Asked(url, "HEAD") for url in urls]
    return asked + [Asked(url, "GET", (("Range", "bytes=0-0"),)) for url in urls]


class Got(NamedTuple):
    """A complete answer. ``content`` is what a user sees of it."""

    content: tuple[object, ...]
    etag: str | None
    cache_control: str
    checks: str

    @property
    def claims(self) -> bool:
        """Whether it claims to be verified, or may be cached for longer than an unverified answer."""
        return self.cache_control not in (UNVERIFIED, "no-store") or "content" in self.checks


def ask(client: FlaskClient, asked: Asked) -> Got | None:
    """Return the answer, or None if the server refuses to answer (5xx) or cuts the connection."""
    response = client.open(asked.url, method=asked.method, headers=list(asked.headers))
    try:
        body = response.get_data()
    except NarcoreError:
        return None
    finally:
        response.close()
    if response.status_code >= 500:
        return None
    # The response to a HEAD has no Content-Type if only bytes that are not cached determine it.
    names = ("Location", "NAR-Executable", "NAR-File-Size", *(("Content-Type",) if asked.method == "GET" else ()))
    seen = tuple(map(response.headers.get, names))
    return Got(
        (response.status_code, body, *seen),
        response.headers.get("ETag"),
        response.headers["Cache-Control"],
        response.headers.get("NAR-Verified", ""),
    )


class GatedStore(MemoryStore):
    """A store whose NARs end only when ``gate`` is set. ``begun`` is set when a NAR is requested."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        file = super().get_file(path, start, stop)
        if not path.startswith("nar/"):
            return file
        self.begun.set()
        return StoreFile(self._gated(b"".join(file)), size=file.size)

    def _gated(self, data: bytes) -> Generator[bytes]:
        yield data[: len(data) // 2]
        assert self.gate.wait(30)
        yield data[len(data) // 2 :]


def files_of(lie: dict[str, Tree] | None, compression: str) -> dict[str, bytes]:
    """Return a binary cache with TRUE. Its listing is ``lie``, or absent."""
    files = binary_cache({"x": TRUE}, compression=compression, listings=False)
    return files | ({f"{hash_part('x')}.ls": listing_json(lie)} if lie else {})


@contextmanager
def serving(store: MemoryStore, directory: Path | None, *, strict: bool = False) -> Iterator[FlaskClient]:
    nars = NarCache(directory, size=lambda _directory: 1 << 30, max_fills=4) if directory else None
    cache = BinaryCache([store], cache=nars, strict=strict)
    try:
        yield create_app(Settings(), cache).test_client()
    finally:
        cache.close()


def cached(client: FlaskClient) -> None:
    """Bring the NAR into the disk cache. The first try fails if the listing is wrong."""
    zero = Asked(f"/nix/store/{hash_part('x')}/zero")
    answers = [ask(client, zero) for _ in range(2)]
    assert answers[-1] is not None
    assert answers[-1].content[1] == TRUE["zero"]


@contextmanager
def telling_the_truth(directory: Path, compression: str = "zstd") -> Iterator[FlaskClient]:
    """Start a server that has no listing, only the NAR, which it caches and verifies."""
    with serving(MemoryStore(files_of(None, compression)), directory) as client:
        cached(client)
        yield client


def assert_honest(got: Got | None, true: Got | None, asked: Asked) -> None:
    """Assert that a wrong answer neither claims to be verified nor has the ETag of the right one."""
    assert true is not None
    if got is None:
        return
    if got.claims:
        assert (got.content, got.etag) == (true.content, true.etag), asked
    elif got.content != true.content:
        assert got.etag is None or got.etag != true.etag, asked


def main() -> int:
    """Run the whole matrix with cold servers: every lie, with and without a disk cache, by range and as a stream."""
    counts = dict.fromkeys(("answers", "refused or cut", "wrong, and cached for 5 minutes", "claiming"), 0)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        truths = {each: stack.enter_context(telling_the_truth(Path(name) / each, each)) for each in ("none", "zstd")}
        for lie, tree in LIES.items():
            for asked, compression, disk in product(requests(TRUE, tree), truths, (True, False)):
                with (
                    tempfile.TemporaryDirectory(dir=name) as nars,
                    serving(MemoryStore(files_of(tree, compression)), Path(nars) if disk else None) as client,
                ):
                    got, true = ask(client, asked), ask(truths[compression], asked)
                assert_honest(got, true, asked)
                counts["answers"] += 1
                counts["refused or cut"] += got is None
                if got is not None and true is not None:
                    counts["claiming"] += got.claims
                    counts["wrong, and cached for 5 minutes"] += got.content != true.content
            print(f"{lie}: {counts}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
