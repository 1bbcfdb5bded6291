"""Views of a mount for containers of Kubernetes and Docker: read-only, or an overlay that keeps what is written.

::

    volumes   publish, unpublish, flush, recover        states      the states of volumes on disk, and their locks
    request   parses what a pod or a container requests statefiles  reads and replaces small JSON files
    watcher   shows overlays names that appear late     targets     checks ids and target paths
    prefetch  asks a mount to fetch closures            trees       directories that containers have written to
    liveness  checks that a mount answers               removals    removes files of volumes in the background
    caches    parses --cache NAME=DIR                   errors      why a volume can't be mounted

The code here never accesses the file system of a mount, since the call would hang if the mount does. It reads from mountinfo what
is mounted, and asks the control socket of a mount whether it answers.
"""

from narmount.volumes.request import MODES, Mode, VolumeRequest
from narmount.volumes.states import Volume
from narmount.volumes.volumes import Volumes
from narmount.volumes.watcher import Watcher

__all__ = ["MODES", "Mode", "Volume", "VolumeRequest", "Volumes", "Watcher"]
