"""Stores: the files of a binary cache, by relative path. A store knows nothing about NAR, narinfo or compression.

::

    base       BinaryCacheStore, StoreFile: the interface of every store
    http/      a binary cache behind HTTP
    buckets/   S3, Google Cloud Storage, Azure
    local      a directory
    memory     in memory, for tests and demonstrations
    traced     TracedStore: emits a trace event for each file
    waits      StoreWaits: limits how many threads wait for a store that sends nothing
    names      converts the path in a narinfo to file names
    cafile     the certificate authorities that are trusted
"""

from narcore.errors import SettingsError
from narcore.stores.base import BinaryCacheStore, StoreFile, read_file
from narcore.stores.http.store import HttpBinaryCacheStore
from narcore.stores.http.urls import redacted
from narcore.stores.local import LocalBinaryCacheStore
from narcore.stores.memory import MemoryStore

__all__ = [
    "BinaryCacheStore",
    "HttpBinaryCacheStore",
    "LocalBinaryCacheStore",
    "MemoryStore",
    "StoreFile",
    "open_store",
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
