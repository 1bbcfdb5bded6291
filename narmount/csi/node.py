"""The Node service and the Identity service. Kubelet calls the Node service when a pod with a volume starts or ends.

Arguments are checked in the order that csi-sanity expects. Calls take milliseconds, since they fetch no store
paths. Kubelet gives up after two minutes.
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
from narmount.csi.attributes import parse_attributes, pod_name
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

READER_MODES = (MODE_SINGLE_NODE_READER_ONLY, MODE_MULTI_NODE_READER_ONLY)
WRITER_MODES = (MODE_SINGLE_NODE_WRITER, MODE_SINGLE_NODE_SINGLE_WRITER, MODE_SINGLE_NODE_MULTI_WRITER)
PROBE_SECONDS = 1.0  # time for asking all mounts; kubelet waits one second for a probe
STRING_MAX = 128  # bytes; the specification's limit for strings without a limit of their own

log = logging.getLogger("narmount.csi")


@dataclass(frozen=True, slots=True)
class CsiPlugin:
    """The settings of the plugin.

    ``name`` is the name of the CSIDriver object. Targets of volumes are below ``kubelet_dir``. ``caches`` maps
    the names of caches to the directories of their mounts.
    """

    name: str
    node_id: str
    kubelet_dir: Path
    caches: Mapping[str, Path]


class CsiIdentity:
    """The Identity service. The methods take and return messages of ``narmount.csi.schema``."""

    def __init__(self, plugin: CsiPlugin, volumes: Volumes) -> None:
        self._plugin = plugin
        self._volumes = volumes

    def get_plugin_info(self, _: Any) -> Any:
        return CSI["GetPluginInfoResponse"](name=self._plugin.name, vendor_version=__version__)

    def get_plugin_capabilities(self, _: Any) -> Any:
        """Return no capabilities, since the plugin has no Controller service."""
        return CSI["GetPluginCapabilitiesResponse"]()

    def probe(self, _: Any) -> Any:
        """Return whether all mounts answer."""
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


class CsiNode:
    """The Node service. The methods take and return messages of ``narmount.csi.schema``."""

    def __init__(self, plugin: CsiPlugin, volumes: Volumes) -> None:
        self._plugin = plugin
        self._volumes = volumes
        self._kubelet_dir = Path(os.path.realpath(plugin.kubelet_dir))

    def get_info(self, _: Any) -> Any:
        return CSI["NodeGetInfoResponse"](node_id=self._plugin.node_id)

    def get_capabilities(self, _: Any) -> Any:
        kinds = (RPC_GET_VOLUME_STATS, RPC_VOLUME_MOUNT_GROUP)
        return CSI["NodeGetCapabilitiesResponse"](capabilities=[{"rpc": {"type": kind}} for kind in kinds])

    def publish(self, request: Any) -> Any:
        volume_id, path = _id(request), _target(request, "target_path")
        if not request.HasField("volume_capability"):
            raise VolumeRefused("volume_capability is missing")
        capability = request.volume_capability
        is_read_only = _is_read_only(capability)
        target = self._below_kubelet_dir(path)
        options = parse_attributes(
            request.volume_context,
            read_only=request.readonly or is_read_only,
            mount_group=capability.mount.volume_mount_group,
            caches=tuple(self._plugin.caches),
        )
        self._volumes.publish(volume_id, target, options)
        pod = pod_name(request.volume_context)
        log.info("published %s for pod %s: cache %s, %s", volume_id, pod, options.cache, options.mode)
        return CSI["NodePublishVolumeResponse"]()

    def unpublish(self, request: Any) -> Any:
        volume_id, target = _id(request), _target(request, "target_path")
        self._volumes.unpublish(volume_id, self._below_kubelet_dir(target))
        log.info("unpublished %s", volume_id)
        return CSI["NodeUnpublishVolumeResponse"]()

    def get_volume_stats(self, request: Any) -> Any:
        """Return the size of what the pod has written. Only the upper layer on the node is measured, since the mount may hang."""
        volume_id, path = _id(request), _target(request, "volume_path")
        try:
            self._volumes.find(volume_id, self._below_kubelet_dir(path))
        except VolumeRefused as error:  # a volume with such an id or path can't exist
            raise NoSuchVolume(str(error)) from error
        used, available = self._volumes.usage(volume_id), self._volumes.space()
        usage = {"unit": UNIT_BYTES, "used": used, "available": available, "total": used + available}
        return CSI["NodeGetVolumeStatsResponse"](usage=[usage])

    def _below_kubelet_dir(self, text: str) -> Path:
        """Return the target, if it is below the directory of kubelet. Raises VolumeRefused."""
        target = Path(os.path.normpath(text))
        for top in (self._plugin.kubelet_dir, self._kubelet_dir):
            if text.startswith("/") and ".." not in Path(text).parts and top in target.parents:
                return self._kubelet_dir / target.relative_to(top)
        raise VolumeRefused(
            f"{shown(text)} is not below {self._plugin.kubelet_dir}; set --kubelet-dir to the directory of kubelet"
        )


def _is_read_only(capability: Any) -> bool:
    """Return whether the access mode is read-only. Raises VolumeRefused if the capability is not supported."""
    if capability.HasField("block"):
        raise VolumeRefused("block volumes are not supported; use volumeMounts, not volumeDevices")
    if not capability.HasField("mount"):
        raise VolumeRefused("volume_capability has no access_type; set it to mount")
    if capability.mount.mount_flags:
        raise VolumeRefused("mount options are not supported; remove mountOptions")
    mode = capability.access_mode.mode
    if mode not in (*READER_MODES, *WRITER_MODES):
        step = "use ReadWriteOncePod, ReadWriteOnce or ReadOnlyMany"
        raise VolumeRefused(f"access mode {mode} is not supported, since writes to a volume stay on one node; {step}")
    return mode in READER_MODES


def _id(request: Any) -> str:
    """Return the id of a volume; ``Volumes`` checks its characters. Raises VolumeRefused."""
    volume_id: str = request.volume_id
    if not volume_id:
        raise VolumeRefused("volume_id is missing")
    if len(volume_id.encode()) > STRING_MAX:
        raise VolumeRefused(f"volume_id is longer than {STRING_MAX} bytes")
    return volume_id


def _target(request: Any, field: str) -> str:
    text: str = getattr(request, field)
    if not text:
        raise VolumeRefused(f"{field} is missing")
    return text
