"""Checks of what dockerd sends: the name and the options of a volume, and the id of a mount.

``narmount.volumes.request`` decides which options exist and which values they take, for Docker and Kubernetes alike.
"""

import re
from collections.abc import Sequence

from narmount.volumes.errors import VolumeRefused
from narmount.volumes.request import VolumeRequest
from narmount.volumes.targets import ID_MAX, shown

MOUNT_ID_MAX = 256  # characters; the ids of dockerd have 64 characters

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")  # the rule of dockerd for its own driver (volume/local)


def parse_options(options: object, caches: Sequence[str]) -> VolumeRequest:
    """Parse the options of ``docker volume create``. The first of ``caches`` is the default. Raises VolumeRefused."""
    if options is None:  # Docker sends null for no options
        options = {}
    if not isinstance(options, dict):
        raise VolumeRefused("Opts is not an object of strings")
    for name, text in options.items():
        if not isinstance(text, str):
            raise VolumeRefused(f"the option {shown(name)} is not a string")
    return VolumeRequest.parse(options, caches)


def volume_name(value: object) -> str:
    """Check the name of a volume, which becomes the name of files and directories. Raises VolumeRefused."""
    if not isinstance(value, str) or not value:
        raise VolumeRefused("the call has no Name of a volume")
    if len(value) > ID_MAX:
        raise VolumeRefused(f"the volume name {shown(value)} is too long; use at most {ID_MAX} characters")
    if not _NAME.fullmatch(value):
        raise VolumeRefused(
            f"{shown(value)} is not a valid volume name; use letters, digits, _ . - and begin with a letter or a digit"
        )
    return value


def mount_id(value: object) -> str:
    """Check the id of a mount, by which dockerd distinguishes the users of a volume. Raises VolumeRefused."""
    if not isinstance(value, str) or not value or len(value) > MOUNT_ID_MAX:
        raise VolumeRefused(f"the call needs the ID of a mount, a string of at most {MOUNT_ID_MAX} characters")
    return value
