"""How the disk cache reports trouble: OSErrors as CacheFailure, and the two ways in which a fill ends without a fault."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager

from narcore.errors import CacheFailure


class NoReadersLeft(CacheFailure):
    """Nobody reads the NAR any more, and it is not worth finishing."""


class LeaderGaveUp(CacheFailure):
    """The process that fetched the NAR has stopped without an error: try again."""


@contextmanager
def as_cache_failure() -> Generator[None]:
    """Raise CacheFailure in place of an OSError of the cache directory."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        raise CacheFailure(f"the cache directory can't be used: {os.strerror(error.errno or 0)} ({name})") from error
