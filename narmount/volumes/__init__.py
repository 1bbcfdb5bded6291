"""Views of a mount for containers: read-only, or an overlay that keeps what is written. For Kubernetes and Docker.

::

    volumes   publish, unpublish, flush, recover         states    which volumes there are: a directory each, on disk
    watcher   overlays see what was published late       targets   ids and paths from outside, checked once
    prefetch  closures to fetch, told to the mount       trees     directories that containers have written to
    liveness  whether the mounts answer                  removals  what is left of volumes goes, in the background
    caches    the mounts, by command line                errors    why a volume can't be had

Nothing here asks the file system of a mount anything: it may not answer, and then neither would we. What is mounted is read from
mountinfo, and whether a mount lives is seen at its control socket.
"""

from narmount.volumes.request import MODES, Mode, VolumeRequest
from narmount.volumes.states import Volume
from narmount.volumes.volumes import Volumes
from narmount.volumes.watcher import Watcher

__all__ = ["MODES", "Mode", "Volume", "VolumeRequest", "Volumes", "Watcher"]
