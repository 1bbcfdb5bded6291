"""A running nar-serve as a binary cache store, so that what it serves is checked as any other cache's would be.

It has what an instance knows of its store paths: their narinfos, and their NARs, which it sends uncompressed whatever they are
compressed with where it has them from.
"""

from collections.abc import Generator
from dataclasses import replace

from narcore.errors import FileNotInStore, RangeNotSupported
from narcore.formats.cacheinfo import CacheInfo
from narcore.stores.base import StoreFile, check_part
from narserve.session.instance import Instance


class InstanceStore:
    """``<hash>.narinfo`` and ``<hash>.nar`` of one instance, and nix-cache-info. Closing it leaves the instance open."""

    def __init__(self, instance: Instance) -> None:
        self.url = instance.url
        self._instance = instance

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        check_part(start, stop)
        if start or stop is not None:
            raise RangeNotSupported(f"{self.url}: NARs come whole")
        hash_part, dot, extension = path.partition(".")
        match dot + extension:
            case ".narinfo":
                return _small(self._narinfo(hash_part))
            case ".nar":
                return StoreFile(self._nar(hash_part), size=None)
        if path == "nix-cache-info":
            return _small(CacheInfo(store_dir=self._instance.store_dir).to_text())
        raise FileNotInStore(f"{self.url}: no file {path}")

    def check(self) -> None:
        """There is nothing that could be set up wrongly."""

    def close(self) -> None:
        """The instance is its owner's to close."""

    def _narinfo(self, hash_part: str) -> str:
        told = self._instance.narinfo(hash_part)
        return replace(told, url=f"{hash_part}.nar", compression="none", file_hash=None, file_size=None).to_text()

    def _nar(self, hash_part: str) -> Generator[bytes]:
        chunks = self._instance.nar(self._instance.narinfo(hash_part).store_path, "")
        if chunks is None:
            raise FileNotInStore(f"{self.url} gives no NARs")
        return chunks


def _small(text: str) -> StoreFile:
    content = text.encode()
    return StoreFile(_once(content), size=len(content))


def _once(content: bytes) -> Generator[bytes]:
    yield content
