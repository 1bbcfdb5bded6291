"""``BucketWriter``: writes objects to a bucket of any provider, with obstore. All uploads of nar-serve use it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from narcore.errors import WriteError
from narcore.stores.buckets.url import BucketUrl
from narcore.stores.writer import CLAIM_SECONDS, CLAIMS, StoredObject

if TYPE_CHECKING:
    from obstore import Attributes, ObjectMeta, UpdateVersion
    from obstore.store import ObjectStore

# S3 allows 10,000 parts per object: up to 80 GB with parts of this size. An upload holds at most _PARTS_AT_ONCE parts in memory.
_PART_SIZE = 8 << 20
_PARTS_AT_ONCE = 3


class BucketWriter:
    """A StoreWriter for the bucket ``url``. Names are relative to its prefix.

    ``open_client`` returns a client. It is called at the first request, because a forked worker needs its own client.
    """

    def __init__(
        self,
        url: BucketUrl,
        open_client: "Callable[[], ObjectStore]",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.url = str(url)
        self._bucket = url
        self._open_client = open_client
        self._now = now
        self._client: ObjectStore | None = None

    def has(self, name: str) -> bool:
        import obstore

        with self._errors(name):
            try:
                obstore.head(self._store(), self._bucket.key(name))
            except FileNotFoundError:
                return False
        return True

    def put(self, name: str, chunks: Iterable[bytes], headers: Mapping[str, str]) -> None:
        import obstore

        with self._errors(name):
            obstore.put(
                self._store(),
                self._bucket.key(name),
                iter(chunks),
                attributes=cast("Attributes", dict(headers)),
                use_multipart=True,
                chunk_size=_PART_SIZE,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def claim(self, name: str) -> bool:
        """Like `StoreWriter.claim`. The bucket lets only one caller create an object, or replace a given version of it."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        key, expiry = self._claim(name), str(int(self._now().timestamp()) + CLAIM_SECONDS).encode()
        with self._errors(name):
            try:
                obstore.put(self._store(), key, expiry, mode="create")
            except (AlreadyExistsError, PreconditionError):
                pass
            else:
                return True
            try:
                current = obstore.get(self._store(), key)
                if int(bytes(current.bytes())) > self._now().timestamp():
                    return False
                obstore.put(self._store(), key, expiry, mode=_version_of(current.meta))
            except (FileNotFoundError, PreconditionError):  # another process has just released or taken over the claim
                return False
        return True

    def release(self, name: str) -> None:
        import obstore

        with self._errors(name):
            obstore.delete(self._store(), self._claim(name))

    def objects(self) -> Iterator[StoredObject]:
        import obstore

        prefix = self._bucket.prefix
        with self._errors("the list of objects"):
            for page in obstore.list(self._store(), prefix or None, chunk_size=1000):
                for entry in page:
                    yield StoredObject(entry["path"].removeprefix(f"{prefix}/" if prefix else ""), entry["size"])

    def close(self) -> None:
        self._client = None

    def _claim(self, name: str) -> str:
        return self._bucket.key(f"{CLAIMS}/{name}")

    def _store(self) -> "ObjectStore":
        if self._client is None:  # concurrent requests may create it twice, which is harmless
            self._client = self._open_client()
        return self._client

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, PermissionError, FileNotFoundError) as error:  # FileNotFoundError: the bucket does not exist
            # The first line of the message has the status and the error code; the other lines repeat the request.
            raise WriteError(f"{self.url}: {name}: {str(error).partition(chr(10))[0][:300]}") from None


def _version_of(meta: "ObjectMeta") -> "UpdateVersion":
    """Return what identifies a version of an object. S3 and Azure need the ETag; Google needs its version number."""
    version: UpdateVersion = {"e_tag": meta["e_tag"]}
    if meta["version"] is not None:
        version["version"] = meta["version"]
    return version
