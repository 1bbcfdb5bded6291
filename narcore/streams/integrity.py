"""Is this the NAR that the narinfo promised? A stage of the pipe, so that nobody can forget to ask."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol

from narcore.concurrency.closing import close, stage
from narcore.errors import HashMismatch, SizeMismatch
from narcore.formats.nixhash import NixHash


class Hasher(Protocol):
    """What hashlib's objects do.

    One that works in a thread of its own may have a ``close()`` as well: it is called at the end, however that comes.
    """

    def update(self, data: bytes, /) -> object:
        """Take the next bytes."""

    def digest(self) -> bytes:
        """The digest of all bytes so far."""


@stage
def verified(
    chunks: Iterable[bytes], *, nar_hash: NixHash, nar_size: int, hasher: Hasher | None = None
) -> Iterator[bytes]:
    """Pass ``chunks`` on and check that they are ``nar_size`` bytes with the hash ``nar_hash``.

    No byte beyond ``nar_size`` is given out, and the last chunk only after the check: whoever has all bytes has the
    right ones. Raises SizeMismatch and HashMismatch. A reader who stops earlier gets no check.
    """
    hasher = hasher or hashlib.new(nar_hash.algorithm)
    try:
        size = 0
        previous = b""
        for chunk in filter(None, chunks):  # an empty chunk must not push out the one that is held back
            size += len(chunk)
            if size > nar_size:
                raise SizeMismatch(f"the NAR is longer than its NarSize of {nar_size} bytes")
            hasher.update(chunk)
            if previous:
                yield previous
            previous = chunk
        _check(NixHash(nar_hash.algorithm, hasher.digest()), nar_hash, size, nar_size)
        if previous:
            yield previous
    finally:
        close(hasher)


def _check(actual: NixHash, nar_hash: NixHash, size: int, nar_size: int) -> None:
    if size != nar_size:
        raise SizeMismatch(f"the NAR has {size} bytes, its NarSize says {nar_size}")
    if actual.digest != nar_hash.digest:
        raise HashMismatch(f"the NAR's hash is {actual.to_nix32()}, its NarHash says {nar_hash.to_nix32()}")
