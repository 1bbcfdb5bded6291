"""Errors of the disk cache: the conversion of OSErrors, and two exceptions for a fill that stops early without a fault."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager

from narcore.errors import CacheFailure


class NoReadersLeft(CacheFailure):
    """The NAR has no readers any more, and too little of it has been fetched to complete it."""


class LeaderGaveUp(CacheFailure):
    """The process that fetched the NAR stopped early without a fault: the caller may try again."""


@contextmanager
def as_cache_failure() -> Generator[None]:
    """Convert an OSError of the cache directory to CacheFailure."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        raise CacheFailure(f"the cache directory can't be used: {os.strerror(error.errno or 0)} ({name})") from error
