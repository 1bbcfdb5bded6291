"""The checks of csi-sanity for a plugin with a node service and no controller, over a real socket.

The tests have the names of its specs (github.com/kubernetes-csi/csi-test, pkg/sanity: identity.go and node.go).
"""

import re
import stat

from narmount.csi.schema import RPC_GET_VOLUME_STATS, RPC_VOLUME_MOUNT_GROUP
from tests.csi.calling import CAPABILITY, refused
from tests.csi.conftest import NAME, Running

# --- Identity Service


def test_get_plugin_capabilities_should_return_appropriate_capabilities(running: Running) -> None:
    """The plugin claims no optional service."""
    assert list(running.call.identity("GetPluginCapabilities").capabilities) == []


def test_probe_should_return_appropriate_information(running: Running) -> None:
    response = running.call.identity("Probe")
    assert response.HasField("ready")
    assert response.ready.value is True


def test_get_plugin_info_should_return_appropriate_information(running: Running) -> None:
    response = running.call.identity("GetPluginInfo")
    assert response.name == NAME
    assert re.fullmatch(r"[a-zA-Z0-9][-a-zA-Z0-9.]{0,61}[a-zA-Z0-9]", response.name)
    assert response.vendor_version


# --- Node Service


def test_node_get_capabilities_should_return_appropriate_capabilities(running: Running) -> None:
    response = running.call.node("NodeGetCapabilities")
    assert [each.rpc.type for each in response.capabilities] == [RPC_GET_VOLUME_STATS, RPC_VOLUME_MOUNT_GROUP]


def test_node_get_info_should_return_appropriate_values(running: Running) -> None:
    response = running.call.node("NodeGetInfo")
    assert response.node_id == "node-1"
    assert response.max_volumes_per_node >= 0


def test_node_publish_volume_should_fail_when_no_volume_id_is_provided(running: Running) -> None:
    with refused("INVALID_ARGUMENT", "volume_id is missing"):
        running.call.node("NodePublishVolume")


def test_node_publish_volume_should_fail_when_no_target_path_is_provided(running: Running) -> None:
    with refused("INVALID_ARGUMENT", "target_path is missing"):
        running.call.node("NodePublishVolume", volume_id="id")


def test_node_publish_volume_should_fail_when_no_volume_capability_is_provided(running: Running) -> None:
    with refused("INVALID_ARGUMENT", "volume_capability is missing"):
        running.call.node("NodePublishVolume", volume_id="id", target_path=str(running.target()))


def test_node_unpublish_volume_should_fail_when_no_volume_id_is_provided(running: Running) -> None:
    with refused("INVALID_ARGUMENT", "volume_id is missing"):
        running.call.node("NodeUnpublishVolume")


def test_node_unpublish_volume_should_fail_when_no_target_path_is_provided(running: Running) -> None:
    with refused("INVALID_ARGUMENT", "target_path is missing"):
        running.call.node("NodeUnpublishVolume", volume_id="id")


def test_node_unpublish_volume_should_remove_target_path(running: Running) -> None:
    target = running.target()
    running.call.publish("sanity-node-unpublish", target)
    assert target.is_dir()
    running.call.unpublish("sanity-node-unpublish", target)
    assert not target.exists()
    assert target.parent.is_dir()


def test_node_get_volume_stats_should_fail_when_no_volume_id_is_provided(running: Running) -> None:
    with refused("INVALID_ARGUMENT", "volume_id is missing"):
        running.call.stats("", "some/path")


def test_node_get_volume_stats_should_fail_when_no_volume_path_is_provided(running: Running) -> None:
    with refused("INVALID_ARGUMENT", "volume_path is missing"):
        running.call.stats("foobar", "")


def test_node_get_volume_stats_should_fail_when_volume_is_not_found(running: Running) -> None:
    with refused("NOT_FOUND"):
        running.call.stats("foobar", "some/path")
    with refused("NOT_FOUND"):
        running.call.stats("foobar", running.target())


def test_node_get_volume_stats_should_fail_when_volume_does_not_exist_on_the_specified_path(running: Running) -> None:
    running.call.publish("sanity-node-get-volume-stats", running.target())
    for path in ("some/path", running.target("pod-2")):
        with refused("NOT_FOUND"):
            running.call.stats("sanity-node-get-volume-stats", path)


def test_should_work(running: Running) -> None:
    """A volume is published, measured and unpublished."""
    target = running.target()
    assert running.call.node("NodeGetInfo").node_id
    running.call.publish("sanity-node-full", target, volume_context={}, volume_capability=CAPABILITY)
    assert target.stat().st_mode & stat.S_IFDIR
    assert (target / "hello").read_text() == "main"
    (target / "written").write_bytes(bytes(100_000))
    (usage,) = running.call.stats("sanity-node-full", target).usage
    assert usage.used >= 100_000
    assert usage.total == usage.used + usage.available
    running.call.unpublish("sanity-node-full", target)
    with refused("NOT_FOUND"):
        running.call.stats("sanity-node-full", target)


def test_should_be_idempotent(running: Running) -> None:
    for _ in range(2):
        for _ in range(2):
            running.call.publish("sanity-node-idempotent", running.target())
        assert running.below() == [running.target()]
        for _ in range(2):
            running.call.unpublish("sanity-node-idempotent", running.target())
        assert running.below() == []
