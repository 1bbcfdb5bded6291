"""Why a volume can't be had. Each is a MountError, and its message has the next step."""

from narcore.errors import MountError


class VolumeRefused(MountError):
    """An id, a target or an option that can't be used: asking again for the same does not help."""


class VolumeConflict(MountError):
    """There is something else at the target already."""


class VolumeElsewhere(VolumeConflict):
    """The volume is at another target."""


class NoSuchVolume(MountError):
    """There is no volume of that id, or not there."""


class VolumeBusy(MountError):
    """Something else is done with the volume just now; asking again in a moment helps."""


class CacheDead(MountError):
    """Nothing answers for the mount that the volume is to show."""
