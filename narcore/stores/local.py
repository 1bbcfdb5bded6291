"""A binary cache in a directory, as ``nix copy --to file:///path`` writes it."""

import errno
import os
import stat
from io import FileIO
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from narcore.errors import FileNotInStore, RangeNotSupported, SettingsError, StoreForbidden, StoreUnavailable
from narcore.sizes import CHUNK_SIZE
from narcore.stores.base import StoreFile, check_by_asking, check_part
from narcore.stores.http.urls import redacted
from narcore.stores.names import file_names

# O_NONBLOCK: opening a FIFO returns immediately, and the later check with fstat rejects the FIFO. O_NOFOLLOW: the path is
# already resolved. If its last segment is a link now, another process has replaced the file since then.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY

# These errors mean that there is no regular file of that name. They do not mean that the directory is broken.
# ENXIO: the name is a socket. ELOOP: a cycle of links.
_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}


class LocalBinaryCacheStore:
    """The files below one directory. Symlinks are followed if they lead to a file inside the directory.

    ``location`` is ``file:///path`` (percent-encoded) or an absolute path; parameters after ``?`` are ignored. The directory
    need not exist yet, because a disk may be mounted later. Until it exists, the store is unavailable.
    """

    def __init__(self, location: str) -> None:
        self._root = _directory(location)
        self.url = Path(self._root).as_uri()

    @property
    def directory(self) -> Path:
        """The directory, as configured."""
        return Path(self._root)

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        check_part(start, stop)
        file = self._open(path)
        if file is None:
            raise FileNotInStore(f"{self.url}: no file {path}")
        size = os.fstat(file.fileno()).st_size
        end = size if stop is None else stop
        if end > size or (start and start >= end):
            file.close()
            raise RangeNotSupported(f"{self.url}: {path} has {size} bytes, requested {start} to {end}")
        file.seek(start)
        return StoreFile(_FileBody(file, f"{self.url}: {path}", end - start), size=size)

    def check(self) -> None:
        check_by_asking(self)

    def close(self) -> None:
        """Do nothing: every file is closed by its reader."""

    def _open(self, path: str) -> FileIO | None:
        root = os.path.realpath(self._root)
        for name in file_names(path):
            file = self._open_name(root, name)
            if file is not None:
                return file
        if not Path(root).is_dir():
            raise StoreUnavailable(f"{self.url}: there is no such directory")
        return None

    def _open_name(self, root: str, name: str) -> FileIO | None:
        try:
            real = os.path.realpath(f"{root}/{name}")
            if os.path.commonpath((root, real)) != root:
                raise StoreForbidden(f"{self.url}: {name!r} is a link that leads out of the store")
            return _regular_file(os.open(real, _FLAGS))
        except UnicodeEncodeError:  # lone surrogates can't be encoded as a file name
            return None
        except OSError as error:
            if error.errno in _NO_SUCH_FILE:
                return None
            raise StoreUnavailable(f"{self.url}: can't open {name!r}: {error.strerror}") from error


def _directory(location: str) -> str:
    if location.startswith("/"):
        path, host = location.partition("?")[0], ""
    else:
        host, path = _host_and_path(location)
    if host not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise SettingsError(f"not the URL of a directory: {redacted(location)!r}; write file:///absolute/path")
    return path


def _host_and_path(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:  # an unbalanced bracket
        return "", ""
    return parts.netloc, unquote(parts.path, errors="surrogateescape")


def _regular_file(descriptor: int) -> FileIO | None:
    # The type is checked before FileIO is called, because FileIO rejects a directory but leaves the descriptor open.
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return FileIO(descriptor)
    os.close(descriptor)
    return None


class _FileBody:
    """The next ``left`` bytes of an open file. Closes the file at the end."""

    def __init__(self, file: FileIO, what: str, left: int) -> None:
        self._file = file
        self._what = what
        self._left = left

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if not self._left:
            self._file.close()
            raise StopIteration
        chunk = self._read(min(self._left, CHUNK_SIZE))
        if not chunk:
            raise StoreUnavailable(f"{self._what}: the file shrank while it was read")
        self._left -= len(chunk)
        return chunk

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size) or b""  # None (would block) is impossible for a regular file
        except OSError as error:
            raise StoreUnavailable(f"{self._what}: can't read: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()
