"""Shared by the tests of responses: requests, answers, listings, and a source of NAR bytes that records its reads."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from werkzeug.test import EnvironBuilder, run_wsgi_app
from werkzeug.wrappers import Request

from api.errors import error_response
from api.http.noderef import NodeRef
from api.responses.base import Response
from narcore.errors import CacheFailure
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.nar.events import Directory, DirectoryEnd, NarEvent, Regular, Symlink

STORE_PATH = "/nix/store/0c0jn4b2x5k2s6v1zqmz3n2a9wqjkvfd-hello-2.12"
NAR_HASH = "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s"
DATA = bytes(range(32, 127)) * 30  # 2850 bytes of text

Headers = Mapping[str, str]


class Answer:
    """A response, as a WSGI server sends it."""

    def __init__(self, response: Response, environ: Mapping[str, Any]) -> None:
        chunks, self.status_line, self.headers = run_wsgi_app(response, dict(environ))
        try:
            self.body = b"".join(chunks)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        self.status = int(self.status_line.split()[0])

    @property
    def text(self) -> str:
        return self.body.decode()


def request(
    url: str = "/", method: str = "GET", headers: Headers | None = None, environ: Mapping[str, object] | None = None
) -> Request:
    builder = EnvironBuilder(url, method=method, headers=list((headers or {}).items()))
    try:
        return Request({**builder.get_environ(), **(environ or {})})
    finally:
        builder.close()


def answer(req: Request, respond: Callable[[Request], Response]) -> Answer:
    """Return the answer that a client gets. Exceptions become error responses, as in the app."""
    try:
        response = respond(req)
    except Exception as error:  # noqa: BLE001  the error handler of the app handles all exceptions too
        response = error_response(req, error)
    return Answer(response, req.environ)


class Source:
    """The bytes of one file, returned in pieces of ``piece`` bytes. Records the reads and counts those that are still open."""

    def __init__(self, data: bytes, *, piece: int = 100, fail_at: int | None = None, on_disk: bool = False) -> None:
        self.data = data
        self.piece = piece
        self.fail_at = fail_at
        self.on_disk = on_disk
        self.reads: list[tuple[int, int]] = []
        self.open = 0
        self.changed = False

    def read(self, start: int, stop: int) -> "SourceBytes":
        self.reads.append((start, stop))
        self.open += 1
        return SourceBytes(self, start, stop)


class SourceBytes:
    is_verified = True

    def __init__(self, source: Source, start: int, stop: int) -> None:
        self.length = stop - start
        self._source = source
        self._start = start
        self._closed = False
        self.file: tuple[int, int] | None = None
        if source.on_disk:  # the file is in the middle of a NAR
            self._nar = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
            self._nar.write(b"before!!" + source.data + b"after!!!")
            self._nar.flush()
            self.file = self._nar.fileno(), 8 + start

    def __iter__(self) -> Iterator[bytes]:
        source = self._source
        for offset in range(self._start, self._start + self.length, source.piece):
            if source.fail_at is not None and offset >= source.fail_at:
                raise ConnectionError("http://user:secret@upstream/ broke")
            yield source.data[offset : min(offset + source.piece, self._start + self.length)]

    def check_untouched(self) -> None:
        if self._source.changed:
            raise CacheFailure("the file was changed")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._source.open -= 1
            if self.file:
                self._nar.close()


def file_node(name: str, size: int, *, executable: bool = False) -> Node:
    return Node(1, Kind.REGULAR, name, size, executable, 96, "")


def ref(path: str = "", nar_hash: str = NAR_HASH) -> NodeRef:
    return NodeRef(nar_hash, STORE_PATH, path)


def listing_of(tree: object) -> NarListing:
    """Make a listing from nested dicts. An int is a file of that size, bytes are an executable, a str is a symbolic link."""
    return NarListing.from_events(_events(b"", tree))


def _events(name: bytes, tree: object) -> Iterator[NarEvent]:
    if isinstance(tree, int):
        yield Regular(name, False, tree, 0)
    elif isinstance(tree, bytes):
        yield Regular(name, True, len(tree), 0)
    elif isinstance(tree, str):
        yield Symlink(name, tree.encode("utf-8", "surrogateescape"))
    elif isinstance(tree, dict):
        yield Directory(name)
        entries = {key.encode("utf-8", "surrogateescape"): value for key, value in tree.items()}
        for key in sorted(entries):
            yield from _events(key, entries[key])
        yield DirectoryEnd()
