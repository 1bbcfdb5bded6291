"""Volumes: code shared by ``csi`` (Kubernetes) and ``docker``. A volume shows a mount to containers, read-only or as an overlay.

::

    volumes       mounts and unmounts volumes ("publish" and "unpublish" in CSI), and recovers them after a restart
    request       parses what a pod or a container requests
    caches        parses --cache NAME=DIR: each binary cache that volumes can show is a mount at DIR
    overlayflush  flushes overlays when a name appears in their mount
    prefetch      asks a mount to fetch closures
    liveness      checks that a mount answers
    states        the states of volumes on disk, and their locks
    statefiles    reads and replaces small JSON files
    targets       checks ids and target paths
    trees         directories that containers have written to
    removals      removes files of volumes in the background
    errors        why a volume can't be mounted

This package never accesses the file system of a mount, since the call would hang if the mount hangs. mountinfo says what is
mounted, and the control socket of a mount says whether the mount answers.
"""

from narmount.volumes.overlayflush import OverlayFlusher
from narmount.volumes.request import MODES, Mode, VolumeRequest
from narmount.volumes.states import Volume
from narmount.volumes.volumes import Volumes

__all__ = ["MODES", "Mode", "OverlayFlusher", "Volume", "VolumeRequest", "Volumes"]
