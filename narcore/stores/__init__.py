"""Stores: the files of a binary cache, by relative path. A store knows nothing about NAR, narinfo or compression.

::

    base       BinaryCacheStore, StoreFile: the interface of every store
    http/      a binary cache behind HTTP
    buckets/   S3, Google Cloud Storage, Azure
    local      a directory
    memory     in memory, for tests and demonstrations
    traced     TracedStore: emits a trace event for each file
    waits      StoreWaits: limits how many threads wait for a store that sends nothing
    writer     StoreWriter: the interface of stores that can be written to; localwriter writes to a directory
    names      converts the path in a narinfo to file names
    cafile     the file of trusted certificate authorities
"""

from narcore.errors import SettingsError
from narcore.stores.base import BinaryCacheStore, StoreFile, read_file
from narcore.stores.http.store import HttpBinaryCacheStore
from narcore.stores.http.urls import redacted
from narcore.stores.local import LocalBinaryCacheStore
from narcore.stores.localwriter import LocalWriter
from narcore.stores.memory import MemoryStore
from narcore.stores.writer import StoreWriter

__all__ = [
    "BinaryCacheStore",
    "HttpBinaryCacheStore",
    "LocalBinaryCacheStore",
    "MemoryStore",
    "StoreFile",
    "open_store",
    "open_writer",
    "read_file",
]

_USE = "use http://, https://, s3://, gs://, az://, file:// or an absolute path"


def open_store(url: str) -> BinaryCacheStore:
    """Return the store for a store URL, without connecting to it. Raises ``SettingsError`` if the URL is invalid."""
    if url.startswith("/"):
        return LocalBinaryCacheStore(url)
    scheme, colon, _ = url.partition(":")
    match scheme.lower() if colon else "":
        case "http" | "https":
            return HttpBinaryCacheStore(url)
        case "file":
            return LocalBinaryCacheStore(url)
        case "s3":
            from narcore.stores.buckets.s3 import S3BinaryCacheStore  # optional dependencies: imported only if needed

            return S3BinaryCacheStore(url)
        case "gs" | "az":
            from narcore.stores.buckets.googleazure import ObjectBinaryCacheStore

            return ObjectBinaryCacheStore(url)
        case _:
            raise SettingsError(f"not a store URL: {redacted(url)!r}; {_USE}")


def open_writer(url: str) -> StoreWriter:
    """Return the writer for a store URL, without connecting to it. Raises ``SettingsError`` if the store can't be written to."""
    scheme = url.partition(":")[0].lower()
    if scheme in ("s3", "gs", "az"):
        from narcore.stores.buckets.upload import BucketWriter
        from narcore.stores.buckets.url import BucketUrl

        if scheme == "s3":
            from narcore.stores.buckets.s3 import S3BinaryCacheStore

            return BucketWriter(BucketUrl.parse(url), S3BinaryCacheStore(url).open_client)
        from narcore.stores.buckets.googleazure import ObjectBinaryCacheStore

        return BucketWriter(BucketUrl.parse(url), ObjectBinaryCacheStore(url).open_client)
    store = open_store(url)
    if not isinstance(store, LocalBinaryCacheStore):
        raise SettingsError(f"{store.url} can't be written to; use s3://, gs://, az:// or file://")
    return LocalWriter(store.directory)
