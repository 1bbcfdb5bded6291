"""Remembers the error of a failed fill for a few seconds, for all processes. So waiting clients do not all retry the fill.

The error applies only to the file that was fetched. Another file, in the same or another store, may contain the correct NAR.
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
    """Write the error of a fill from ``source`` to ``path``, replacing an older error.

    Ignores OSErrors: if the error can't be written, the next reader starts another fill, which does no harm.
    """
    note = json.dumps({"error": type(error).__name__, "message": str(error), "source": source}).encode()
    with suppress(OSError), replacing(path) as fd:
        os.write(fd, note)


def recall(path: Path, source: str = "") -> errors.NarcoreError | None:
    """Return the error in ``path`` if the fill was from ``source`` and failed at most SECONDS ago, else None."""
    try:
        if is_old(path):
            return None
        note = json.loads(path.read_bytes())
        return _CLASSES[note["error"]](note["message"]) if note["source"] == source else None
    except (OSError, ValueError, KeyError, TypeError):  # the file is missing or invalid
        return None


def is_old(path: Path) -> bool:
    """Return whether the error in ``path`` is older than SECONDS. Raises OSError if ``path`` does not exist."""
    return abs(time.time() - path.stat().st_mtime) > SECONDS
