"""Kubelet finds a plugin by a socket in its directory ``plugins_registry``, and asks it there what it is.

This is what the sidecar node-driver-registrar does for others. Kubelet sees a socket come and go, so it is made when the plugin
listens, and removed before it ends.
"""

import logging
from pathlib import Path
from typing import Any

from narmount.csi.schema import REGISTRATION
from narmount.csi.server import CsiCalls, CsiServer

VERSIONS = ["1.0.0"]  # kubelet wants those of the plugin interface; any of CSI 1 is the same to it

log = logging.getLogger("narmount.csi")


def registration_path(kubelet_dir: Path, name: str) -> Path:
    return kubelet_dir / "plugins_registry" / f"{name}-reg.sock"


def registration_server(path: Path, name: str, endpoint: Path, calls: CsiCalls) -> CsiServer:
    """``endpoint`` is the plugin's socket, as kubelet sees it."""

    def info(_: Any) -> Any:
        return REGISTRATION["PluginInfo"](
            type="CSIPlugin", name=name, endpoint=str(endpoint), supported_versions=VERSIONS
        )

    def notified(status: Any) -> Any:
        if status.plugin_registered:
            log.info("kubelet has registered %s", name)
        else:
            step = "is the CSIDriver of that name there, and has no other plugin taken it?"
            log.error("kubelet does not register %s: %s; %s", name, status.error[:1000], step)
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
