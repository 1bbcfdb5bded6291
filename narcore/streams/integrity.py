"""Checks a NAR against its narinfo, as a stage of the stream, so that no caller can forget the check."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol

from narcore.concurrency.closing import close, stage
from narcore.errors import HashMismatch, SizeMismatch
from narcore.formats.nixhash import NixHash


class Hasher(Protocol):
    """The interface of hashlib's objects.

    A hasher that works in its own thread may also have ``close()``, which is called at the end of the stream, also after an error.
    """

    def update(self, data: bytes, /) -> object:
        """Add the next bytes."""

    def digest(self) -> bytes:
        """Return the digest of all bytes so far."""


@stage
def verified(
    chunks: Iterable[bytes], *, nar_hash: NixHash, nar_size: int, hasher: Hasher | None = None
) -> Iterator[bytes]:
    """Pass ``chunks`` on and check that they have ``nar_size`` bytes and the hash ``nar_hash``.

    Passes on no byte beyond ``nar_size``, and passes on the last chunk only after the check. So if a reader has received all bytes,
    the bytes are verified. If a reader stops earlier, nothing is checked. Raises SizeMismatch and HashMismatch.
    """
    hasher = hasher or hashlib.new(nar_hash.algorithm)
    try:
        size = 0
        previous = b""
        for chunk in filter(None, chunks):  # an empty chunk must not release the chunk that is held back
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
        raise SizeMismatch(f"the NAR has {size} bytes; its NarSize is {nar_size}")
    if actual.digest != nar_hash.digest:
        raise HashMismatch(f"the NAR's hash is {actual.to_nix32()}; its NarHash is {nar_hash.to_nix32()}")
