"""The calls of kubelet: volume attributes, refusals and their codes, concurrent calls, and metrics."""

import logging
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from narcore.errors import SettingsError
from narmount.csi.schema import CSI, MODE_MULTI_NODE_READER_ONLY, MODE_SINGLE_NODE_READER_ONLY, MODE_SINGLE_NODE_WRITER
from narmount.csi.server import CALLS_MAX, MESSAGE_MAX
from narmount.daemon.control import control_path
from narmount.fuse import syscalls
from narmount.fuse.mountinfo import mounts_at
from narmount.volumes.liveness import AT_ONCE
from tests.csi.calling import CAPABILITY, client, refused
from tests.csi.conftest import NAME, Running
from tests.mount.mounting import until

POD = {
    "csi.storage.k8s.io/ephemeral": "true",
    "csi.storage.k8s.io/pod.name": "tests-1",
    "csi.storage.k8s.io/pod.namespace": "ci",
    "csi.storage.k8s.io/pod.uid": "1234",
    "csi.storage.k8s.io/serviceAccount.name": "default",
}
MULTI_NODE_MULTI_WRITER = 5
HELLO = f"/nix/store/{32 * '0'}-hello"


def mode_of(target: Path) -> str:
    return "overlay" if mounts_at(target)[-1].fs_type == "overlay" else "ro"


def capability(access_mode: int = MODE_SINGLE_NODE_WRITER, **mount: object) -> dict[str, object]:
    return {"mount": mount, "access_mode": {"mode": access_mode}}


@pytest.mark.parametrize(
    ("attributes", "read_only", "mode"),
    [({}, False, "overlay"), ({}, True, "ro"), ({"mode": "ro"}, False, "ro"), ({"mode": "overlay"}, False, "overlay")],
)
def test_a_pod_chooses_the_mode(running: Running, attributes: dict[str, str], read_only: bool, mode: str) -> None:
    running.call.publish("a", running.target(), volume_context=POD | attributes, readonly=read_only)
    assert mode_of(running.target()) == mode


def test_a_pod_chooses_the_cache_by_name(running: Running) -> None:
    for name, attributes in (("main", {}), ("main", {"cache": "main"}), ("other", {"cache": "other"})):
        running.call.publish("a", running.target(), volume_context=attributes)
        assert (running.target() / "hello").read_text() == name
        running.call.unpublish("a", running.target())


def test_the_group_is_that_of_the_attribute_or_the_fsgroup(running: Running) -> None:
    by_pod = capability(volume_mount_group="1234")
    for attributes, capabilities, group, mode in (
        ({}, CAPABILITY, 0, 0o755),
        ({}, by_pod, 1234, 0o2775),
        ({"group": "77"}, CAPABILITY, 77, 0o2775),
        ({"group": "77"}, by_pod, 77, 0o2775),
    ):
        running.call.publish("a", running.target(), volume_context=attributes, volume_capability=capabilities)
        status = running.target().stat()
        assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (group, mode)
        running.call.unpublish("a", running.target())
    # A pod with an fsGroup may have read-only volumes.
    running.call.publish("a", running.target(), volume_capability=by_pod, readonly=True)
    assert mode_of(running.target()) == "ro"


def test_store_paths_of_a_pod_are_prefetched(running: Running) -> None:
    other = HELLO.replace("hello", "other")
    running.call.publish("a", running.target(), volume_context={"prefetch": f"{HELLO},{other}\n {HELLO}"})
    until(lambda: running.prefetched == [HELLO[11:], other[11:]], "the prefetch request")


def test_a_failed_prefetch_is_logged_and_the_volume_works(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    control_path(running.place / "run", running.place / "main").unlink()
    running.call.publish("a", running.target(), volume_context={"prefetch": HELLO})
    assert (running.target() / "hello").exists()
    until(lambda: "volume a: prefetch failed: no process answers" in caplog.text, "the log line")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"volume_context": {"flakeRef": "x"}},
            "unknown option 'flakeRef'; the options are cache, group, mode, prefetch",
        ),
        ({"volume_context": {"csi.storage.k8s.iox": "x"}}, "unknown option"),
        (
            {"volume_context": {"cache": "https://evil.example"}},
            "cache takes a name, not a URL; the caches here are main, other",
        ),
        ({"volume_context": {"cache": "../main"}}, "unknown cache '../main'; the caches here are main, other"),
        ({"volume_context": {"cache": ""}}, "unknown cache ''"),
        ({"volume_context": {"mode": "rw"}}, "unknown mode 'rw'"),
        ({"volume_context": {"mode": "overlay"}, "readonly": True}, "readOnly: true; remove one of them"),
        ({"volume_context": {"mode": "ro", "group": "1"}}, "leave out group, or use mode=overlay"),
        ({"volume_context": {"group": "wheel"}}, "is not a group id"),
        ({"volume_context": {"group": "-1"}}, "is not a group id"),
        ({"volume_context": {"group": "4294967295"}}, "is not a group id"),
        ({"volume_context": {"group": "٣"}}, "is not a group id"),
        ({"volume_capability": capability(volume_mount_group="x,upperdir=/")}, "is not a group id"),
        ({"volume_context": {"prefetch": "/etc/passwd"}}, "not a store path"),
        ({"volume_context": {"prefetch": f"{HELLO}/../x"}}, "not a store path"),
        ({"volume_context": {"prefetch": "x" * 5000}}, "not a store path"),
        ({"volume_context": {"prefetch": " ".join(f"{HELLO}{n}" for n in range(101))}}, "at most 100 store paths"),
        ({"volume_capability": {"block": {}}}, "block volumes are not supported"),
        ({"volume_capability": capability(mount_flags=["suid"])}, "mount options are not supported"),
        ({"volume_capability": {"access_mode": {"mode": 1}}}, "has no access_type"),
        ({"volume_capability": {"mount": {}}}, "access mode 0 is not supported"),
        ({"volume_capability": capability(MULTI_NODE_MULTI_WRITER)}, "access mode 5 is not supported"),
        ({"volume_capability": capability(99)}, "access mode 99 is not supported"),
        (
            {"volume_capability": capability(MODE_SINGLE_NODE_READER_ONLY), "volume_context": {"mode": "overlay"}},
            "readOnly: true; remove one of them",
        ),
        ({"volume_id": "a/../b"}, "can't be the id of a volume"),
        ({"volume_id": ".."}, "can't be the id of a volume"),
        ({"volume_id": "a,upperdir=/etc"}, "can't be the id of a volume"),
        ({"volume_id": "a" * 129}, "longer than 128 bytes"),
        ({"volume_id": "ä"}, "can't be the id of a volume"),
        ({"target_path": "/etc"}, "is not below"),
        ({"target_path": "relative"}, "is not below"),
        ({"target_path": "{}"}, "is not below"),
        ({"target_path": "{}/../x"}, "is not below"),
        ({"target_path": "{}x/y"}, "is not below"),
        ({"target_path": "{}/pods/\0"}, "can't be a target"),
        ({"target_path": "{}/" + "x" * 4200}, "can't be a target"),
    ],
)
def test_invalid_requests_are_refused(running: Running, fields: dict[str, Any], message: str) -> None:
    request = {"volume_id": "a", "target_path": str(running.target()), "volume_capability": CAPABILITY} | fields
    request["target_path"] = request["target_path"].replace("{}", str(running.place / "kubelet"))
    with refused("INVALID_ARGUMENT", message):
        running.call.node("NodePublishVolume", **request)
    assert running.below() == []
    assert not (running.place / "state/a").exists()


@pytest.mark.parametrize("target", ["/", "/etc", "x", "{}", "{}/../main", "{}/pods\0"])
def test_unpublish_refuses_targets_outside_the_directory_of_kubelet(running: Running, target: str) -> None:
    with refused("INVALID_ARGUMENT"):
        running.call.unpublish("a", target.replace("{}", str(running.place / "kubelet")))
    assert (running.place / "main/hello").exists()


def test_a_link_out_of_the_directory_of_kubelet_is_refused(running: Running) -> None:
    (running.place / "outside").mkdir()
    link = running.place / "kubelet/pods"
    link.symlink_to(running.place / "outside")
    with refused("INVALID_ARGUMENT", "it is not below"):
        running.call.publish("a", link / "x")
    assert mounts_at(running.place / "outside/x") == []


def test_conflicting_volumes_are_refused(running: Running) -> None:
    running.call.publish("a", running.target())
    with refused("ALREADY_EXISTS", "other options; unpublish it first"):
        running.call.publish("a", running.target(), readonly=True)
    with refused("FAILED_PRECONDITION", "unpublish it there first"):
        running.call.publish("a", running.target("pod-2"))
    with refused("ALREADY_EXISTS", "something else is mounted"):
        running.call.publish("b", running.target())


@pytest.mark.parametrize("mode", [MODE_SINGLE_NODE_READER_ONLY, MODE_MULTI_NODE_READER_ONLY])
def test_access_modes_of_readers_give_a_read_only_volume(running: Running, mode: int) -> None:
    running.call.publish("a", running.target(), volume_capability=capability(mode))
    assert mode_of(running.target()) == "ro"


def test_a_volume_with_an_unreadable_state_can_be_unpublished(running: Running) -> None:
    running.call.publish("a", running.target())
    (running.place / "state/a/state.json").write_text("{")
    running.call.unpublish("a", running.target())
    assert running.below() == []
    assert not (running.place / "state/a").exists()


def test_without_its_mount_a_cache_is_unavailable(running: Running) -> None:
    """Volumes can be unpublished, and new ones are refused with a code that makes kubelet retry."""
    running.call.publish("a", running.target())
    running.controls["main"].close()
    assert running.call.identity("Probe").ready.value is False
    with refused("UNAVAILABLE", "has died; run nar-serve mount"):
        running.call.publish("b", running.target("pod-2"))
    syscalls.unmount(running.place / "main", lazy=True)
    with refused("UNAVAILABLE", "the cache main is not mounted; run nar-serve mount"):
        running.call.publish("b", running.target("pod-2"))
    running.call.publish("b", running.target("pod-2"), volume_context={"cache": "other"})
    running.call.unpublish("a", running.target())
    assert running.below() == [running.target("pod-2")]


def test_a_disk_error_leaves_nothing_and_can_be_retried(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, code in ((28, "RESOURCE_EXHAUSTED"), (5, "INTERNAL")):

        def fail(_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number), "/var/lib/secret")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with refused(code, "disk error on the node"):
                running.call.publish("a", running.target())
        assert running.below() == []
    running.call.publish("a", running.target())


def test_an_internal_error_is_logged_and_not_shown(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(running.volumes, "publish", fail)
    with refused("INTERNAL", "internal error of nar-serve; see the log of nar-serve csi"):
        running.call.publish("a", running.target())
    assert "ZeroDivisionError" in caplog.text


def test_the_log_names_pods_safely_and_omits_secrets(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    running.call.publish("a", running.target(), volume_context=POD, secrets={"token": "hunter2"})
    hostile = {"csi.storage.k8s.io/pod.name": "x\n2026 ERROR y"}
    running.call.publish("b", running.target("pod-2"), volume_context=hostile)
    running.call.unpublish("a", running.target())
    assert caplog.messages == [
        "published a for pod ci/tests-1: cache main, overlay",
        r"published b for pod ?/x\n2026 ERROR y: cache main, overlay",
        "unpublished a",
    ]


def test_many_volumes_are_published_concurrently(running: Running) -> None:
    targets = {f"csi-{number:02}": running.target(f"pod-{number}") for number in range(50)}
    with ThreadPoolExecutor(50) as threads:
        list(threads.map(lambda item: running.call.publish(*item), targets.items()))
        assert {*running.below()} == {*targets.values()}
        list(threads.map(lambda item: running.call.unpublish(*item), targets.items()))
    assert running.below() == []


def test_a_hanging_mount_leaves_threads_for_other_mounts(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of 100 pods wait for the mount, in the kernel or for its answer."""
    waiting, end = threading.Semaphore(0), threading.Event()
    mount_overlay = syscalls.mount_overlay

    def hang(target: Path, **layers: Any) -> None:
        if layers["lower"] == running.place / "main":
            waiting.release()
            assert end.wait(20)
        mount_overlay(target, **layers)

    monkeypatch.setattr(syscalls, "mount_overlay", hang)
    monkeypatch.setattr("narmount.volumes.liveness.ANSWER_SECONDS", 15)
    with ThreadPoolExecutor(100) as threads:
        pods = [f"pod-{number}" for number in range(100)]
        calls = [threads.submit(running.call.publish, pod, running.target(pod)) for pod in pods]
        for _ in range(AT_ONCE):
            assert waiting.acquire(timeout=20)
        start = time.monotonic()
        running.call.publish("other", running.target(), volume_context={"cache": "other"})
        assert running.below() == [running.target()]
        running.call.unpublish("other", running.target())
        assert time.monotonic() - start < 10, "the call does not wait for a lock either"
        end.set()
        for call in calls:
            call.exception(20)
    assert len(running.below()) >= AT_ONCE


def test_concurrent_calls_for_one_volume_mount_it_once(running: Running) -> None:
    with ThreadPoolExecutor(50) as threads:
        list(threads.map(lambda _: running.call.publish("a", running.target()), range(50)))
        assert running.below() == [running.target()]
        list(threads.map(lambda _: running.call.unpublish("a", running.target()), range(50)))
    assert running.below() == []


def test_a_long_message_does_not_hide_the_status_code(running: Running) -> None:
    target = running.target()
    while len(os.fsencode(target)) < 3600:
        target /= "ü" * 100
    (target / "mount/file").mkdir(parents=True)
    with refused("ALREADY_EXISTS", "ü"):
        running.call.publish("a", target / "mount")
    with refused("NOT_FOUND", "there is no volume a at"):
        running.call.stats("a", target / "mount")


def test_a_request_that_is_too_large_is_refused(running: Running) -> None:
    with refused("RESOURCE_EXHAUSTED"):
        running.call.publish("a", running.target(), volume_context={"prefetch": "x" * MESSAGE_MAX})
    assert CALLS_MAX >= 500, "all pods of a node may start at the same time"


def test_calls_are_counted_by_status_code(running: Running) -> None:
    running.call.publish("a", running.target())
    with refused("INVALID_ARGUMENT"):
        running.call.unpublish("", running.target())
    counts, seconds = running.calls.families()
    assert counts.values == {("NodePublishVolume", "OK"): 1, ("NodeUnpublishVolume", "INVALID_ARGUMENT"): 1}
    assert 0 < seconds.values[("NodePublishVolume",)] < 5
    assert running.volumes.published() == {"ro": 0, "overlay": 1}


def test_the_plugin_registers_with_kubelet(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    endpoint = running.place / "kubelet/plugins" / NAME / "csi.sock"
    with client(running.registry) as call:
        info = call.registered()
        assert (info.type, info.name, info.endpoint) == ("CSIPlugin", NAME, str(endpoint))
        assert list(info.supported_versions) == ["1.0.0"]
        assert f"kubelet registered {NAME}" in caplog.text
        call.registered(error="no such driver")
        assert f"kubelet did not register {NAME}: no such driver; check that a CSIDriver" in caplog.text
    for path in (running.registry, endpoint):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, "a client may mount"


def test_a_socket_is_exclusive_and_removed_at_the_end(running: Running) -> None:
    with pytest.raises(SettingsError, match=r"another program listens at .*; is nar-serve csi running already"):
        running.servers[1].start()
    running.servers[1].stop()
    assert not running.registry.exists()


def test_an_unknown_call_is_unimplemented(running: Running) -> None:
    request = CSI["NodeGetInfoRequest"]()
    with refused("UNIMPLEMENTED"):
        running.call("csi.v1.Node", "NodeStageVolume", request, CSI["NodeGetInfoResponse"])


def test_a_malformed_request_does_not_harm_the_plugin(running: Running) -> None:
    with grpc.insecure_channel(f"unix:{running.place}/kubelet/plugins/{NAME}/csi.sock") as channel:
        call: Any = channel.unary_unary("/csi.v1.Node/NodePublishVolume")
        with refused("INTERNAL"):
            call(b"\xff" * 100, timeout=10)
    running.call.publish("a", running.target())
