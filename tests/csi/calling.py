"""A gRPC client that calls the plugin as kubelet does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from narmount.csi.schema import CSI, MODE_SINGLE_NODE_WRITER, REGISTRATION

CALL_SECONDS = 20
CAPABILITY = {"mount": {}, "access_mode": {"mode": MODE_SINGLE_NODE_WRITER}}


class Client:
    """Makes calls by name with the fields of their requests, and returns the responses. Raises grpc.RpcError."""

    def __init__(self, path: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{path}")

    def close(self) -> None:
        self._channel.close()

    def __call__(self, service: str, call: str, request: Any, response: type[Any]) -> Any:
        return self._channel.unary_unary(
            f"/{service}/{call}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )(request, timeout=CALL_SECONDS)

    def identity(self, call: str) -> Any:
        return self("csi.v1.Identity", call, CSI[f"{call}Request"](), CSI[f"{call}Response"])

    def node(self, call: str, **fields: Any) -> Any:
        return self("csi.v1.Node", call, CSI[f"{call}Request"](**fields), CSI[f"{call}Response"])

    def publish(self, volume_id: str, target: Path | str, **fields: Any) -> Any:
        request = {"volume_id": volume_id, "target_path": str(target), "volume_capability": CAPABILITY} | fields
        return self.node("NodePublishVolume", **request)

    def unpublish(self, volume_id: str, target: Path | str) -> Any:
        return self.node("NodeUnpublishVolume", volume_id=volume_id, target_path=str(target))

    def stats(self, volume_id: str, path: Path | str) -> Any:
        return self.node("NodeGetVolumeStats", volume_id=volume_id, volume_path=str(path))

    def registered(self, *, error: str = "") -> Any:
        """Register the plugin as kubelet does: ask for its info, which is returned, and send it the outcome."""
        service = "pluginregistration.Registration"
        info = self(service, "GetInfo", REGISTRATION["InfoRequest"](), REGISTRATION["PluginInfo"])
        status = REGISTRATION["RegistrationStatus"](plugin_registered=not error, error=error)
        self(service, "NotifyRegistrationStatus", status, REGISTRATION["RegistrationStatusResponse"])
        return info


@contextmanager
def client(path: Path) -> Iterator[Client]:
    connected = Client(path)
    try:
        yield connected
    finally:
        connected.close()


@contextmanager
def refused(code: str, match: str = "") -> Iterator[None]:
    """Assert that a call in the block fails with a status code, and a message that contains ``match``."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert (error.code().name, match in (error.details() or "")) == (code, True), error.details()
