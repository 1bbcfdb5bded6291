"""Why a fill failed, remembered for seconds and for every process: a thousand waiting clients must not each try again."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from narcore import errors

SECONDS = 3.0

_CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.NarcoreError)
}


def remember(path: Path, error: errors.NarcoreError) -> None:
    """Note the error at ``path``, in place of an older one. A disk that can't take it is none of the readers' trouble."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        partial.write_text(json.dumps({"error": type(error).__name__, "message": str(error)}))
        partial.replace(path)


def recall(path: Path) -> errors.NarcoreError | None:
    """The error noted at ``path``, if it is no older than SECONDS."""
    try:
        if abs(time.time() - path.stat().st_mtime) > SECONDS:
            return None
        noted = json.loads(path.read_text())
        return _CLASSES[noted["error"]](noted["message"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return None
