"""The Node service: what kubelet asks for when a pod with a volume begins and ends. Also Identity, which says who we are.

In the order in which csi-sanity wants arguments to be checked. Calls take milliseconds: nothing is fetched in them, and kubelet
would give up after two minutes.
"""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narcore.errors import MountError
from narcore.version import __version__
from narmount.csi.attributes import Attributes
from narmount.csi.schema import (
    CSI,
    MODE_MULTI_NODE_READER_ONLY,
    MODE_SINGLE_NODE_MULTI_WRITER,
    MODE_SINGLE_NODE_READER_ONLY,
    MODE_SINGLE_NODE_SINGLE_WRITER,
    MODE_SINGLE_NODE_WRITER,
    RPC_GET_VOLUME_STATS,
    RPC_VOLUME_MOUNT_GROUP,
    UNIT_BYTES,
)
from narmount.daemon.control import read_status
from narmount.volumes import Volumes
from narmount.volumes.errors import NoSuchVolume, VolumeRefused
from narmount.volumes.targets import shown

READERS = (MODE_SINGLE_NODE_READER_ONLY, MODE_MULTI_NODE_READER_ONLY)
WRITERS = (MODE_SINGLE_NODE_WRITER, MODE_SINGLE_NODE_SINGLE_WRITER, MODE_SINGLE_NODE_MULTI_WRITER)
PROBE_SECONDS = 1.0  # for all mounts together: kubelet gives a probe one second
ID_MAX = 128  # bytes, of every string unless the specification says otherwise

log = logging.getLogger("narmount.csi")


@dataclass(frozen=True, slots=True)
class Plugin:
    """``name`` is that of the CSIDriver object. ``kubelet_dir``: targets of volumes are below it. ``caches``: mounts by name."""

    name: str
    node_id: str
    kubelet_dir: Path
    caches: Mapping[str, Path]


class Identity:
    def __init__(self, plugin: Plugin, volumes: Volumes) -> None:
        self._plugin = plugin
        self._volumes = volumes

    def get_plugin_info(self, _: Any) -> Any:
        return CSI["GetPluginInfoResponse"](name=self._plugin.name, vendor_version=__version__)

    def get_plugin_capabilities(self, _: Any) -> Any:
        """None: there is no controller."""
        return CSI["GetPluginCapabilitiesResponse"]()

    def probe(self, _: Any) -> Any:
        """Ready when all mounts answer."""
        response = CSI["ProbeResponse"]()
        response.ready.value = self._is_ready()
        return response

    def _is_ready(self) -> bool:
        deadline = time.monotonic() + PROBE_SECONDS
        for cache in self._plugin.caches:
            try:
                read_status(self._volumes.control(cache), max(0.05, deadline - time.monotonic()))
            except MountError as error:
                log.warning("not ready: cache %s: %s", cache, error)
                return False
        return True


class Node:
    def __init__(self, plugin: Plugin, volumes: Volumes) -> None:
        self._plugin = plugin
        self._volumes = volumes
        self._kubelet_dir = Path(os.path.realpath(plugin.kubelet_dir))

    def get_info(self, _: Any) -> Any:
        return CSI["NodeGetInfoResponse"](node_id=self._plugin.node_id)

    def get_capabilities(self, _: Any) -> Any:
        kinds = (RPC_GET_VOLUME_STATS, RPC_VOLUME_MOUNT_GROUP)
        return CSI["NodeGetCapabilitiesResponse"](capabilities=[{"rpc": {"type": kind}} for kind in kinds])

    def publish(self, request: Any) -> Any:
        volume_id, given = _id(request), _target(request, "target_path")
        if not request.HasField("volume_capability"):
            raise VolumeRefused("volume_capability is missing")
        capability = request.volume_capability
        is_for_readers = _is_for_readers(capability)
        target = self._below_kubelet_dir(given)
        attributes = Attributes.parse(
            request.volume_context,
            read_only=request.readonly or is_for_readers,
            mount_group=capability.mount.volume_mount_group,
            caches=tuple(self._plugin.caches),
        )
        self._volumes.publish(
            volume_id,
            target,
            cache=attributes.cache,
            mode=attributes.mode,
            group=attributes.group,
            prefetch=attributes.prefetch,
        )
        log.info("published %s for pod %s: cache %s, %s", volume_id, attributes.pod, attributes.cache, attributes.mode)
        return CSI["NodePublishVolumeResponse"]()

    def unpublish(self, request: Any) -> Any:
        volume_id, target = _id(request), _target(request, "target_path")
        self._volumes.unpublish(volume_id, self._below_kubelet_dir(target))
        log.info("unpublished %s", volume_id)
        return CSI["NodeUnpublishVolumeResponse"]()

    def get_volume_stats(self, request: Any) -> Any:
        """What the pod has written, by the files on the node: no file system is asked through its mount."""
        volume_id, path = _id(request), _target(request, "volume_path")
        try:
            self._volumes.find(volume_id, self._below_kubelet_dir(path))
        except VolumeRefused as error:  # there can't be such a volume
            raise NoSuchVolume(str(error)) from error
        used, available = self._volumes.usage(volume_id), self._volumes.space()
        usage = {"unit": UNIT_BYTES, "used": used, "available": available, "total": used + available}
        return CSI["NodeGetVolumeStatsResponse"](usage=[usage])

    def _below_kubelet_dir(self, text: str) -> Path:
        """The target, if kubelet may mount something there. Raises VolumeRefused."""
        target = Path(os.path.normpath(text))
        for top in (self._plugin.kubelet_dir, self._kubelet_dir):
            if text.startswith("/") and ".." not in Path(text).parts and top in target.parents:
                return self._kubelet_dir / target.relative_to(top)
        raise VolumeRefused(
            f"{shown(text)} is not below {self._plugin.kubelet_dir}; --kubelet-dir says where kubelet has its files"
        )


def _is_for_readers(capability: Any) -> bool:
    """Whether nobody is to write, by its access mode. Raises VolumeRefused for what no volume here can do."""
    if capability.HasField("block"):
        raise VolumeRefused("a volume of store paths can't be a block device; use volumeMounts, not volumeDevices")
    if not capability.HasField("mount"):
        raise VolumeRefused("volume_capability has no access_type; it has to be mount")
    if capability.mount.mount_flags:
        raise VolumeRefused("mount options can't be chosen; leave mountOptions out")
    mode = capability.access_mode.mode
    if mode not in (*READERS, *WRITERS):
        raise VolumeRefused(f"access mode {mode} is not possible: what is written to a volume is on one node alone")
    return mode in READERS


def _id(request: Any) -> str:
    """Raises VolumeRefused; what it may be made of is checked by ``Volumes``."""
    volume_id: str = request.volume_id
    if not volume_id:
        raise VolumeRefused("volume_id is missing")
    if len(volume_id.encode()) > ID_MAX:
        raise VolumeRefused(f"volume_id is longer than {ID_MAX} bytes")
    return volume_id


def _target(request: Any, field: str) -> str:
    text: str = getattr(request, field)
    if not text:
        raise VolumeRefused(f"{field} is missing")
    return text
