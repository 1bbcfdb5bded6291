"""Why a fill failed, remembered for seconds and for every process: a thousand waiting clients must not each try again.

It holds for the source that the bytes were to come from: another one may have the NAR as it should be.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from narcore import errors
from narcore.cache.locks import replacing

SECONDS = 3.0

_CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.NarcoreError)
}


def remember(path: Path, error: errors.NarcoreError, source: str = "") -> None:
    """Note the error of a fill from ``source`` at ``path``, in place of an older one.

    A disk that can't take it is none of the readers' trouble.
    """
    note = json.dumps({"error": type(error).__name__, "message": str(error), "source": source}).encode()
    with suppress(OSError), replacing(path) as fd:
        os.write(fd, note)


def recall(path: Path, source: str = "") -> errors.NarcoreError | None:
    """The error noted at ``path``, if it is of a fill from ``source`` and no older than SECONDS."""
    try:
        if is_old(path):
            return None
        noted = json.loads(path.read_bytes())
        return _CLASSES[noted["error"]](noted["message"]) if noted["source"] == source else None
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return None


def is_old(path: Path) -> bool:
    """Raises OSError if there is no note."""
    return abs(time.time() - path.stat().st_mtime) > SECONDS
