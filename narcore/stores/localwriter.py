"""Writes files of a binary cache in a directory."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from narcore.errors import WriteError
from narcore.stores.writer import CLAIM_SECONDS, CLAIMS, StoredObject

_NEW = ".new"  # the names of incomplete files end with this


class LocalWriter:
    """A StoreWriter for the directory ``root``. The directory is created if it does not exist."""

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        self.url = root.as_uri()
        self._root = root
        self._now = now

    def has(self, name: str) -> bool:
        with self._errors(name):
            return (self._root / name).is_file()

    def put(self, name: str, chunks: Iterable[bytes], headers: Mapping[str, str]) -> None:
        """Like `StoreWriter.put`. Ignores ``headers``, because a directory can't store them."""
        with self._new(name) as new:
            with self._errors(name):
                file = new.open("xb")
            with file:
                for chunk in chunks:
                    with self._errors(name):
                        file.write(chunk)
                with self._errors(name):
                    file.flush()
                    os.fsync(file.fileno())
            with self._errors(name):
                new.replace(self._root / name)

    def claim(self, name: str) -> bool:
        """Like `StoreWriter.claim`. If two processes take over one expired claim, both write the same bytes, which is harmless."""
        claim = f"{CLAIMS}/{name}"
        with self._new(claim) as new, self._errors(claim):
            new.write_text(str(int(self._now()) + CLAIM_SECONDS))
            try:
                (self._root / claim).hardlink_to(new)
            except FileExistsError:
                with suppress(FileNotFoundError):  # another process has just released the claim
                    if int((self._root / claim).read_text()) > self._now():
                        return False
                new.replace(self._root / claim)
        return True

    def release(self, name: str) -> None:
        with self._errors(name):
            (self._root / CLAIMS / name).unlink(missing_ok=True)

    def objects(self) -> Iterator[StoredObject]:
        with self._errors("the list of files"):
            for directory, _, names in os.walk(self._root):
                for name in names:
                    if not name.endswith(_NEW):
                        path = Path(directory, name)
                        yield StoredObject(path.relative_to(self._root).as_posix(), path.stat().st_size)

    def close(self) -> None:
        """Do nothing: every file is closed by its writer."""

    @contextmanager
    def _new(self, name: str) -> Iterator[Path]:
        """Return the path of a new file next to ``name``, and remove the file if it is still there at the end."""
        path = self._root / name
        new = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}{_NEW}")
        with self._errors(name):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield new
        finally:
            new.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(f"{self.url}: {name}: {error.strerror}") from error
