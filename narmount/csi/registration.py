"""Registers the plugin with kubelet, which looks for sockets in its directory ``plugins_registry`` and asks each of them.

Other plugins use the sidecar node-driver-registrar for this. Kubelet watches the directory, so the socket is created when the
plugin listens, and removed before the plugin ends.
"""

import logging
from pathlib import Path
from typing import Any

from narmount.csi.schema import REGISTRATION
from narmount.csi.server import CsiCalls, CsiServer

VERSIONS = ["1.0.0"]  # the CSI versions of the plugin; kubelet accepts any version 1.x

log = logging.getLogger("narmount.csi")


def registration_path(kubelet_dir: Path, name: str) -> Path:
    return kubelet_dir / "plugins_registry" / f"{name}-reg.sock"


def registration_server(path: Path, name: str, endpoint: Path, calls: CsiCalls) -> CsiServer:
    """Return a server at ``path`` that registers the plugin. ``endpoint`` is the path at which kubelet sees the plugin's socket."""

    def info(_: Any) -> Any:
        return REGISTRATION["PluginInfo"](
            type="CSIPlugin", name=name, endpoint=str(endpoint), supported_versions=VERSIONS
        )

    def notified(status: Any) -> Any:
        if status.plugin_registered:
            log.info("kubelet registered %s", name)
        else:
            step = "check that a CSIDriver of that name exists, and that no other plugin uses the name"
            log.error("kubelet did not register %s: %s; %s", name, status.error[:1000], step)
        return REGISTRATION["RegistrationStatusResponse"]()

    server = CsiServer(path, calls)
    server.add(
        "pluginregistration.Registration",
        {
            "GetInfo": (info, REGISTRATION["InfoRequest"], REGISTRATION["PluginInfo"]),
            "NotifyRegistrationStatus": (
                notified,
                REGISTRATION["RegistrationStatus"],
                REGISTRATION["RegistrationStatusResponse"],
            ),
        },
    )
    return server
