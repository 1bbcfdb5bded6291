"""The ``volumeAttributes`` of a pod. Anyone who may create pods can set them, so they are checked as untrusted input."""

from collections.abc import Mapping, Sequence

from narmount.volumes.errors import VolumeRefused
from narmount.volumes.request import VolumeRequest
from narmount.volumes.targets import shown

# Kubelet adds attributes with this prefix (podInfoOnMount): pod.name, pod.namespace, pod.uid, serviceAccount.name, ephemeral,
# serviceAccount.tokens.
KUBERNETES = "csi.storage.k8s.io/"


def parse_attributes(
    attributes: Mapping[str, str], *, read_only: bool, mount_group: str, caches: Sequence[str]
) -> VolumeRequest:
    """Parse the attributes of a volume. Raises VolumeRefused.

    ``read_only`` is True if the pod mounts the volume with readOnly, which makes the volume read-only. ``mount_group`` is the
    fsGroup of the pod, or empty. The fsGroup is the default group of a writable volume. The first of ``caches`` is the default
    cache. An empty mode or group counts as unset.
    """
    options = {name: text for name, text in attributes.items() if not name.startswith(KUBERNETES)}
    if options.get("mode") == "overlay" and read_only:
        raise VolumeRefused("mode=overlay is writable, but the pod mounts it with readOnly: true; remove one of them")
    options["mode"] = options.get("mode") or ("ro" if read_only else "overlay")
    if options["mode"] == "overlay" and not options.setdefault("group", mount_group):
        del options["group"]
    return VolumeRequest.parse(options, caches)


def pod_name(attributes: Mapping[str, str]) -> str:
    """Return ``namespace/name`` of the pod, safe to log."""
    name, namespace = (attributes.get(f"{KUBERNETES}pod.{what}", "?") for what in ("name", "namespace"))
    return shown(f"{namespace}/{name}")[1:-1]
