"""Parses ``--cache NAME=DIR``: the binary caches that volumes can show. Each is a mount of ``nar-serve mount`` at DIR."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from narcore.errors import SettingsError
from narmount.volumes.targets import shown

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


def parse_caches(texts: Iterable[str]) -> dict[str, Path]:
    """Return the mounts by name, in the given order; the first is the default. Raises SettingsError if there is none."""
    caches: dict[str, Path] = {}
    for text in texts:
        name, _, directory = text.partition("=")
        if not directory or not _NAME.fullmatch(name):
            raise SettingsError(f"--cache {shown(text)} is not NAME=DIR; try --cache main=/srv/nix-store")
        if name in caches:
            raise SettingsError(f"--cache {name} is given twice; give each cache its own name")
        caches[name] = real_path(Path(directory))
    if not caches:
        raise SettingsError("--cache NAME=DIR is missing; DIR is the directory of a nar-serve mount")
    return caches


def real_path(directory: Path) -> Path:
    """Return the path as mountinfo has it. Does not access what is mounted at ``directory``, which may hang."""
    absolute = Path(os.path.abspath(directory))  # noqa: PTH100  pathlib keeps ..
    return Path(os.path.realpath(absolute.parent)) / absolute.name
