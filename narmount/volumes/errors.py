"""Errors of operations on volumes. Each message says what the user can do."""

from narcore.errors import MountError


class VolumeRefused(MountError):
    """An id, a target or an option is invalid. Repeating the call does not help."""


class VolumeConflict(MountError):
    """The target or the name is in use for something else."""


class VolumeElsewhere(VolumeConflict):
    """The volume is mounted at another target."""


class NoSuchVolume(MountError):
    """There is no volume of that id, or it is not mounted at that target."""


class VolumeBusy(MountError):
    """Another operation on the volume is in progress. Repeating the call after a moment helps."""


class CacheDead(MountError):
    """The mount that the volume shows has died, or does not answer."""
