"""A binary cache in memory, for tests and demonstrations."""

from collections.abc import Generator, Mapping

from narcore.errors import FileNotInStore, RangeNotSupported
from narcore.sizes import CHUNK_SIZE
from narcore.stores.base import StoreFile, check_by_asking, check_part
from narcore.stores.names import file_names


class MemoryStore:
    """A store of ``files``, by relative path. The mapping is not copied: files that are added later are served.

    ``content_encodings`` has the Content-Encoding of some files, by relative path, to imitate an HTTP store.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        url: str = "memory://store",
        *,
        content_encodings: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self._files = files
        self._content_encodings = content_encodings or {}

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        check_part(start, stop)
        name = self._find(path)
        if name is None:
            raise FileNotInStore(f"{self.url}: no file {path}")
        content = self._files[name]
        end = len(content) if stop is None else stop
        if end > len(content) or (start and start >= end):
            raise RangeNotSupported(f"{self.url}: {path} has {len(content)} bytes, requested {start} to {end}")
        encoding = self._content_encodings.get(name)
        return StoreFile(_chunks(content, start, end), size=len(content), content_encoding=encoding)

    def check(self) -> None:
        check_by_asking(self)

    def close(self) -> None:
        """Do nothing."""

    def _find(self, path: str) -> str | None:
        return next((name for name in file_names(path) if name in self._files), None)


def _chunks(content: bytes, start: int, stop: int) -> Generator[bytes, None, None]:
    for offset in range(start, stop, CHUNK_SIZE):
        yield content[offset : min(offset + CHUNK_SIZE, stop)]
