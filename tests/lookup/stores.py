"""Binary caches on a real HTTP server. All have the same store path, and each has a different fault."""

import hashlib
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

from narcore.formats.narinfo import NarInfo
from narcore.formats.signature import SecretKey
from narcore.stores.http.store import HttpBinaryCacheStore
from tests.builders import COMPRESS, binary_cache, hash_part, nar
from tests.stores.flaky_server import Act, FlakyServer, Request, Step, answer, head

KEY = SecretKey("matrix-1", hashlib.sha256(b"matrix").digest())
NAME = "hello-2.12"
CONTENTS = random.Random(4).randbytes(400_000)
URL = f"/nix/store/{hash_part(NAME)}-{NAME}/bin/hello"

FAULTS = ("has", "404", "403", "500", "slow", "refused", "forged", "unsigned", "cut")
"""The faults of a store: ``forged`` sends another NAR than the signed one, ``cut`` sends half of the NAR, ``has`` is correct."""

PATIENCE = 0.1  # read timeout of clients of the slow store


@cache
def files(compression: str) -> dict[str, bytes]:
    """Return the files of a correct store."""
    return binary_cache({NAME: {"bin": {"hello": CONTENTS}}}, compression=compression, secret_key=KEY)


@cache
def wrong_nar(compression: str) -> bytes:
    """Return a compressed NAR in which every byte of the file's contents is wrong, and nothing else."""
    return COMPRESS[compression](nar({"bin": {"hello": bytes(255 - byte for byte in CONTENTS)}}))


class Stores:
    """The server, with a store at each ``/<compression>/<fault>/<mark>``."""

    def __init__(self, server: FlakyServer, refusing: str) -> None:
        self._server = server
        self._refusing = refusing

    def open(self, fault: str, compression: str = "zstd", *, mark: str = "x") -> HttpBinaryCacheStore:
        """Open a client of one store. ``mark`` identifies its requests."""
        base = self._refusing if fault == "refused" else self._server.url
        return HttpBinaryCacheStore(
            f"{base}/{compression}/{fault}/{mark}",
            read_timeout=PATIENCE if fault == "slow" else 10,
            retries=0,
            sleep=lambda _seconds: None,
        )

    def asked(self, mark: str) -> list[str]:
        """Return the files that the client with this mark requested."""
        return [
            request.target.split("/", 4)[4]
            for request in list(self._server.requests)
            if request.target.split("/", 4)[3] == mark
        ]

    def ranges(self, mark: str) -> list[tuple[int, int]]:
        """Return the requested ranges: the first byte and the length of each."""
        parts = [request.range for request in list(self._server.requests) if f"/{mark}/" in request.target]
        return [(first, last - first + 1 if last is not None else 0) for first, last in filter(None, parts)]


@contextmanager
def stores() -> Iterator[Stores]:
    with FlakyServer(script) as server, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        yield Stores(server, f"http://127.0.0.1:{bound.getsockname()[1]}")


def script(request: Request) -> Iterator[Step]:
    _, compression, fault, _mark, path = request.target.split("/", 4)
    if fault.isdigit():
        yield from answer(int(fault), b"no")
    elif fault == "slow" and path.endswith(".narinfo"):
        yield Act.STALL
    elif path.startswith("nar/"):
        yield from _nar(request, fault, compression)
    elif path in files(compression):
        yield from answer(200, _small_file(fault, compression, path))
    else:
        yield from answer(404, b"no")


def _small_file(fault: str, compression: str, path: str) -> bytes:
    content = files(compression)[path]
    if fault == "unsigned" and path.endswith(".narinfo"):
        return replace(NarInfo.parse(content), signatures=()).to_text().encode()
    return content


def _nar(request: Request, fault: str, compression: str) -> Iterator[Step]:
    (name,) = (name for name in files(compression) if name.startswith("nar/"))
    packed = wrong_nar(compression) if fault == "forged" else files(compression)[name]
    first, last = request.range or (0, None)
    stop = len(packed) if last is None else last + 1
    if request.range is None:
        yield head(200, length=len(packed))
    else:
        yield head(206, f"Content-Range: bytes {first}-{stop - 1}/{len(packed)}", length=stop - first)
    if fault == "cut":
        yield packed[first : len(packed) // 2]
        yield Act.CLOSE
    else:
        yield packed[first:stop]
