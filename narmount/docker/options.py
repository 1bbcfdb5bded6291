"""Names of volumes, and what ``docker volume create -o`` can say. Whatever comes from outside is checked here, once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Self, TypeGuard

from narcore.errors import StorePathError
from narcore.formats.storepath import StorePath

Mode = Literal["overlay", "ro"]

KNOWN = ("cache", "group", "mode", "prefetch")
MODES: tuple[Mode, ...] = ("overlay", "ro")
NAME_MAX = 200  # Docker's own for anonymous volumes have 64; a directory of that name needs room for a suffix below 255
ID_MAX = 256  # of mounts; Docker's have 64
PREFETCH_MAX = 100  # their closures are fetched, so a few are enough
GROUP_MAX = 2**32 - 2  # the last one means "none" to chown(2)

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")  # as dockerd has it (volume/local), for those of its own driver
_GROUP = re.compile(r"[0-9]{1,10}")


class Refused(Exception):
    """The call can't be done as it is; the message says why, and the next step."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def shown(value: object) -> str:
    """Input in a message: printable, and no longer than a line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """``prefetch`` has the base names of store paths. ``group``: who else but root may write to the root of an overlay."""

    cache: str
    mode: Mode = "overlay"
    group: int | None = None
    prefetch: tuple[str, ...] = ()

    @classmethod
    def parse(cls, given: object, caches: Sequence[str]) -> Self:
        """The options of a call; ``caches`` are those that there are, the first of them the default. Raises Refused."""
        texts = _texts(given)
        cache = texts.get("cache", caches[0])
        if cache not in caches:
            raise Refused(f"there is no cache {shown(cache)}; this plugin has {', '.join(caches)}")
        mode = texts.get("mode", MODES[0])
        if not _is_mode(mode):
            raise Refused(f"mode={shown(mode)} is not known; it is overlay (what is written stays in the volume) or ro")
        if mode == "ro" and "group" in texts:
            raise Refused("group says who may write, and mode=ro lets nobody; leave one of them out")
        group = _group(texts["group"]) if "group" in texts else None
        return cls(cache=cache, mode=mode, group=group, prefetch=_store_paths(texts.get("prefetch", "")))

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """What ``to_json`` gave. Raises Refused, ValueError or TypeError for anything else."""
        cache, group, prefetch = fields["cache"], fields["group"], fields["prefetch"]
        if not isinstance(cache, str) or not isinstance(prefetch, list) or not isinstance(group, int | None):
            raise TypeError("not the options of a volume")
        if not _is_mode(fields["mode"]):
            raise ValueError("not a mode")
        return cls(cache=cache, mode=fields["mode"], group=group, prefetch=tuple(map(_base_name, prefetch)))


def volume_name(value: object) -> str:
    """It becomes the name of directories and files. Raises Refused."""
    if not isinstance(value, str) or not value:
        raise Refused("the call has no Name of a volume")
    if len(value) > NAME_MAX:
        raise Refused(f"the name of a volume has {NAME_MAX} characters at most; {shown(value)} is too long")
    if not _NAME.fullmatch(value):
        raise Refused(
            f"{shown(value)} can't be the name of a volume; use letters, digits, _ . - and begin with no sign"
        )
    return value


def mount_id(value: object) -> str:
    """By which dockerd tells one use of a volume from another. Raises Refused."""
    if not isinstance(value, str) or not value or len(value) > ID_MAX:
        raise Refused(f"the call has no ID of a mount, which is a string of {ID_MAX} characters at most")
    return value


def _texts(given: object) -> dict[str, str]:
    """Docker sends null for no options at all."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Refused("Opts has to be an object of strings")
    for name, text in given.items():
        if name not in KNOWN:
            raise Refused(f"there is no option {shown(name)}; known are {', '.join(KNOWN)}")
        if not isinstance(text, str):
            raise Refused(f"the option {name} has to be a string")
    return given


def _is_mode(value: object) -> TypeGuard[Mode]:
    return value in MODES


def _group(text: str) -> int:
    if not (_GROUP.fullmatch(text) and int(text) <= GROUP_MAX):
        raise Refused(
            f"group={shown(text)} is not the number of a group; names are those of the image, so take a number"
        )
    return int(text)


def _store_paths(text: str) -> tuple[str, ...]:
    """White space or commas between them."""
    words = dict.fromkeys(text.replace(",", " ").split())
    if len(words) > PREFETCH_MAX:
        raise Refused(f"prefetch takes {PREFETCH_MAX} store paths at most; what they refer to is fetched as well")
    return tuple(map(_store_path, words))


def _store_path(text: str) -> str:
    try:
        return StorePath.parse(text).base_name
    except StorePathError as error:
        raise Refused(
            f"prefetch={shown(text)} is not a store path; it is one such as /nix/store/<hash>-<name>"
        ) from error


def _base_name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not the base name of a store path")
    return StorePath.from_base_name(value).base_name
