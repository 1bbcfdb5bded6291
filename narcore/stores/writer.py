"""The interface of a store that can be written to."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol


class StoredObject(NamedTuple):
    """An object of a store: its name relative to the store, and its size in bytes."""

    name: str
    size: int


class StoreWriter(Protocol):
    """Writes files of a store. Thread-safe; several processes may write to one store. Every method may raise ``WriteError``."""

    @property
    def url(self) -> str:
        """The store's URL for messages and logs: without user, password and parameters."""
        ...

    def has(self, name: str) -> bool: ...

    def put(self, name: str, chunks: Iterable[bytes], headers: Mapping[str, str]) -> None:
        """Store ``chunks`` as one file, which becomes visible when it is complete.

        ``headers`` (Content-Type and Cache-Control) are stored if the store serves its files over HTTP. If the iterator raises,
        nothing is stored and the exception propagates unchanged.
        """
        ...

    def claim(self, name: str) -> bool:
        """Claim the right to write ``name``. Returns False if another process has the claim.

        A claim that is not released expires after CLAIM_SECONDS, because a process may die. So a claim usually
        prevents a second write of the same file, but not always.
        """
        ...

    def release(self, name: str) -> None:
        """Release the claim to ``name``."""
        ...

    def objects(self) -> Iterator[StoredObject]:
        """Yield all files of the store."""
        ...

    def close(self) -> None: ...


CLAIM_SECONDS = 300
"""How long a claim is valid. The timeout of a Lambda function must not be longer (serverless.yml)."""

CLAIMS = "claims"
"""The directory of the claims in a store."""
