"""Checks the contents of a NAR against a content address, as a stage after ``integrity.verified``.

The check is needed only for a path that is trusted because of its content address and not because of a signature, and only if the
NarHash does not prove the address: see ``formats.contentaddress.contents_unproved``.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator

from narcore.concurrency.closing import stage
from narcore.errors import HashMismatch, NarError
from narcore.formats.contentaddress import ContentAddress
from narcore.formats.nar.events import Data, End, NarEvent, Regular
from narcore.formats.nar.parser import NarParser
from narcore.formats.nixhash import NixHash
from narcore.streams.integrity import Hasher

SELF_REFERENCES_MAX = 1 << 20  # eight bytes of memory each; the largest real paths have a few thousand


@stage
def addressed(chunks: Iterable[bytes], address: ContentAddress, *, self_reference: str = "") -> Iterator[bytes]:
    """Pass on the ``chunks`` of a NAR, and check that its contents have the content address ``address``.

    ``self_reference`` is the hash part of the store path if the path is among its own references. The last chunk is passed on only
    after the check. Raises HashMismatch if the contents have another hash; raises NarError if a NAR of a single file is expected
    but the input is not a NAR, or if there are more than SELF_REFERENCES_MAX self references. Holds back one chunk at a time.
    """
    hasher = _hasher(address, self_reference)
    previous = b""
    for chunk in filter(None, chunks):  # an empty chunk must not release the chunk that is held back
        hasher.update(chunk)
        if previous:
            yield previous
        previous = chunk
    actual = NixHash(address.hash.algorithm, hasher.digest())
    if actual != address.hash:
        raise HashMismatch(f"the contents hash to {actual.to_nix32()}; their address is {address}")
    if previous:
        yield previous


def _hasher(address: ContentAddress, self_reference: str) -> Hasher:
    if address.method != "nar":
        return _SingleFile(address.hash.algorithm)
    if self_reference:
        return _ModuloSelf(address.hash.algorithm, self_reference.encode())
    return hashlib.new(address.hash.algorithm)


class _SingleFile:
    """Hashes the contents of the single file in a NAR.

    Raises HashMismatch for other kinds of nodes and for executables. Nix never gives them such an address, and the hash of the
    contents would not show the difference.
    """

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm)
        self._parser = NarParser()

    def update(self, data: bytes) -> None:
        self._parser.receive_data(data)
        for event in self._parser.events():
            self._check(event)

    def digest(self) -> bytes:
        self._parser.receive_eof()
        return self._hash.digest()

    def _check(self, event: NarEvent) -> None:
        match event:
            case Data(data):
                self._hash.update(data)
            case Regular(executable=False) | End():
                pass
            case _:
                raise HashMismatch(
                    "the address requires a regular file that is not executable, but the NAR contains something else"
                )


class _ModuloSelf:
    """Hashes a NAR with zeros in place of the path's own hash part, followed by the offsets of the replaced hash parts.

    (Nix: src/libutil/references.cc, HashModuloSink.) The offsets distinguish self references from zeros. Some releases of Nix
    did not hash the offsets. Paths made by these releases are not accepted, because anyone could turn zeros into self references.
    """

    def __init__(self, algorithm: str, own: bytes) -> None:
        self._hash = hashlib.new(algorithm)
        self._own = own
        self._zeros = bytes(len(own))
        self._tail = b""  # may be the beginning of another self reference
        self._hashed = 0
        self._found = array("Q")

    def update(self, data: bytes) -> None:
        window = self._tail + data
        start = window.find(self._own)
        while start >= 0:
            self._add(self._hashed + start)
            start = window.find(self._own, start + len(self._own))
        window = window.replace(self._own, self._zeros)
        self._tail = window[-(len(self._own) - 1) :]
        done = len(window) - len(self._tail)
        self._hash.update(memoryview(window)[:done])
        self._hashed += done

    def digest(self) -> bytes:
        self._hash.update(self._tail)
        for start in self._found:
            self._hash.update(b"|%d" % start)
        return self._hash.digest()

    def _add(self, start: int) -> None:
        if len(self._found) == SELF_REFERENCES_MAX:
            raise NarError(f"more than {SELF_REFERENCES_MAX} self references", where=f"offset {start}")
        self._found.append(start)
