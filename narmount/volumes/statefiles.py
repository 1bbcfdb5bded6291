"""Small JSON files that describe volumes: replaced as a whole, and checked when they are read.

After kill -9 or a power failure a file has either its old content or its new content.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from narcore.errors import MountError

# Bytes. A Docker volume with the most users (10,000) and the longest ids takes 2.6 MB.
STATE_MAX = 4 << 20
PART = ".part"  # the suffix of a file that is not complete

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

State = TypeVar("State")


def current_boot_id() -> str:
    """Return an id that the kernel changes with every boot. A reboot ends all mounts."""
    return _BOOT_ID.read_text().strip()


def read_state(path: Path, parse: Callable[[Any], State]) -> State:
    """Read a file and return what ``parse`` makes of its content.

    Raises FileNotFoundError if there is no such file, and MountError if it can't be read or ``parse`` raises an error.
    """
    try:
        with path.open("rb") as file:
            return parse(json.loads(file.read(STATE_MAX)))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MountError) as error:
        raise MountError(f"{path} can't be read ({error})") from error


def write_state(path: Path, fields: Mapping[str, object]) -> None:
    """Replace a file. When this returns, the new file is on the disk. After an OSError, the old file stays."""
    part = path.with_suffix(PART)
    with part.open("w", encoding="utf-8") as file:
        json.dump(fields, file, default=str)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Write the names in a directory to the disk. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
