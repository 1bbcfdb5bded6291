"""A node with a real mount, the real plugin, and pods that run programs from their volumes."""

import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests import builders, proofs
from tests.csi.calling import Client, refused
from tests.csi.conftest import NAME
from tests.csi.node import FakeNode
from tests.e2e.upstream import Upstream
from tests.mount import mounting
from tests.mount.conftest import write
from tests.mount.mounting import until
from tests.mount.programs import GREETING, HELLO_PROGRAM, PYTHON_PROGRAM, Programs
from tests.mount.samples import NARS, base

EPHEMERAL = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "p"}
TEST_SECONDS = 60
LATE_SECONDS = 240  # the pods of ``waiting`` exist during all tests of this file

WAIT = """
import os, sys, time
path = sys.argv[1]
print(os.path.exists(path), flush=True)
while not os.path.exists(path):
    time.sleep(0.05)
print(open(path).read())
"""


@pytest.fixture(scope="module", autouse=True)
def waiting(made: Programs) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Pods that looked up a store path before it was published. The last test waits until they see the store path."""
    name = "late-0.1"
    files = builders.binary_cache({name: {"text": b"at last\n"}})
    with Upstream() as server, fake_node(server.mount("cache", made.cache), made.public_key, LATE_SECONDS) as node:
        late = node.place / "late"
        node.environ["NAR_CACHE_URL"] += f" {server.mount('late', late)}?trusted=true"
        write(late, {"nix-cache-info": files["nix-cache-info"]})
        node.start_mount()
        node.start_csi()
        with node.registered() as kubelet:
            for pod, read_only in (("pod-1", False), ("pod-2", True)):
                kubelet.publish(f"csi-{pod}", node.target(pod), readonly=read_only)
        pods = [node.start_pod(pod, *python(WAIT), f"/nix/store/{base(name)}/text") for pod in ("pod-1", "pod-2")]
        for process in pods:
            assert process.stdout is not None
            assert process.stdout.readline() == b"False\n"
        write(late, files)
        yield pods


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def node(made: Programs, upstream: Upstream) -> Iterator[FakeNode]:
    with fake_node(upstream.mount("cache", made.cache), made.public_key, TEST_SECONDS) as node:
        node.start_mount()
        node.start_csi()
        yield node


@contextmanager
def fake_node(url: str, public_key: str, seconds: float) -> Iterator[FakeNode]:
    """Start a node, and close it after ``seconds``, since a program that accesses a dead mount may hang forever."""
    node = FakeNode(url, public_key)
    alarm = threading.Timer(seconds, node.close)
    alarm.start()
    try:
        yield node
        assert "Traceback" not in node.log("mount") + node.log("csi")
    finally:
        alarm.cancel()
        alarm.join()
        if node.place.exists():
            node.close()


def python(program: str) -> tuple[str, ...]:
    return PYTHON_PROGRAM, "-c", program


def test_a_pod_runs_programs_from_its_volume_and_writes_to_it(node: FakeNode) -> None:
    target = node.target("pod-1")
    with node.registered() as kubelet:
        assert kubelet.identity("GetPluginInfo").name == NAME
        assert kubelet.identity("Probe").ready.value
        assert kubelet.node("NodeGetInfo").node_id == "node-1"
        start = time.monotonic()
        kubelet.publish("csi-1", target, volume_context=EPHEMERAL)
        assert time.monotonic() - start < 2, "a call fetches nothing"
        kubelet.publish("csi-1", target, volume_context=EPHEMERAL)
        mounted = node.mounted(target)
        assert mounted is not None, "the host sees the mounts of the plugin's namespace"
        assert (mounted.fs_type, mounted.source) == ("overlay", "nar-serve:csi-1")
        assert len(node.mounts()) == 2

        assert node.run_pod("pod-1", HELLO_PROGRAM).startswith(GREETING)
        node.run_pod("pod-1", *python("open('/nix/store/new', 'w').write('x' * 50000)"))
        assert node.run_pod("pod-1", *python("print(len(open('/nix/store/new').read()))")) == "50000\n"
        (usage,) = kubelet.stats("csi-1", target).usage
        assert usage.used >= 50_000

        status = node.csi_status()
        assert (status["state"], [cache["name"] for cache in status["caches"]]) == ("ready", ["main"])
        assert status["volumes"] == [
            {"id": "csi-1", "target": str(target), "cache": "main", "mode": "overlay", "group": None, "mounted": True}
        ]

        kubelet.unpublish("csi-1", target)
        kubelet.unpublish("csi-1", target)
    assert not target.exists()
    assert [mount.target for mount in node.mounts()] == [node.store]
    assert [path.name for path in (node.place / "state").iterdir() if not path.name.startswith("~lock")] == []


def test_pods_do_not_see_the_writes_of_others(node: FakeNode) -> None:
    with node.registered() as kubelet:
        for number in (1, 2):
            kubelet.publish(f"csi-{number}", node.target(f"pod-{number}"))
        kubelet.publish("csi-3", node.target("pod-3"), readonly=True)
        name = HELLO_PROGRAM.split("/")[3]
        program = (
            f"import os; open('/nix/store/new', 'w'); os.remove('{HELLO_PROGRAM}'); print(os.listdir('/nix/store'))"
        )
        assert "'new'" in node.run_pod("pod-1", *python(program))
        for pod in ("pod-2", "pod-3"):
            look = f"import os; print(os.path.exists('/nix/store/new'), os.listdir('/nix/store/{name}/bin'))"
            assert node.run_pod(pod, *python(look)) == "False ['hello']\n"
        fail = "import os\ntry: open('/nix/store/new', 'w')\nexcept OSError as error: print(error.errno)"
        assert node.run_pod("pod-3", *python(fail)) == "30\n"


@pytest.mark.parametrize("propagation", ["slave", "private"])
def test_pods_continue_while_the_plugin_is_killed(node: FakeNode, propagation: str) -> None:
    target = node.target("pod-1")
    with node.registered() as kubelet:
        kubelet.publish("csi-1", target)
    pod = node.start_pod("pod-1", HELLO_PROGRAM, "on and on", propagation=propagation)
    assert pod.stdout is not None
    assert pod.stdout.readline().decode().startswith(GREETING)

    node.kill_csi()
    assert node.registry.exists()
    for _ in range(3):
        assert pod.stdout.readline() == b"tick\n"
    assert node.run_pod("pod-1", *python("print('new')")) == "new\n"
    assert node.run_csi("--status").returncode == 3

    node.start_csi()
    with node.registered() as kubelet:
        kubelet.publish("csi-1", target)
        assert len([mount for mount in node.mounts() if mount.target == target]) == 1
        pod.kill()
        pod.wait()
        kubelet.unpublish("csi-1", target)
    assert not target.exists()
    assert node.mounted(target) is None


def test_a_restarted_plugin_unpublishes_earlier_volumes(node: FakeNode) -> None:
    target = node.target("pod-1")
    with node.registered() as kubelet:
        kubelet.publish("csi-1", target, readonly=True)
    assert node.stop_csi() == 0
    assert not node.registry.exists(), "kubelet sees that the plugin is gone"
    assert not node.endpoint.exists()
    assert node.run_pod("pod-1", HELLO_PROGRAM).startswith(GREETING)
    node.start_csi()
    with node.registered() as kubelet:
        kubelet.unpublish("csi-1", target)
    assert node.mounted(target) is None


def test_a_second_plugin_of_the_same_name_does_not_start(node: FakeNode) -> None:
    done = node.run_csi()
    assert done.returncode == 2
    assert "another program listens at" in done.stderr
    with node.registered() as kubelet:
        assert kubelet.identity("Probe").ready.value


def test_pods_wait_while_the_worker_of_the_mount_is_replaced(node: FakeNode) -> None:
    """The plugin is unready only for a moment."""
    with node.registered() as kubelet:
        kubelet.publish("csi-1", node.target("pod-1"))
        pid = int(node.status()["worker_pid"])
        subject = node.start_pod("pod-1", *python("import time, json; time.sleep(0.5); import sqlite3; print('done')"))
        mounting.ask("kill", "-9", str(pid))
        assert subject.stdout is not None
        assert subject.stdout.readline() == b"done\n"
        until(lambda: kubelet.identity("Probe").ready.value, "ready again")


def test_after_the_mount_died_a_new_mount_serves_new_pods(node: FakeNode) -> None:
    """Volumes of the dead mount can be unpublished."""
    with node.registered() as kubelet:
        for number, read_only in ((1, True), (2, False)):
            kubelet.publish(f"csi-{number}", node.target(f"pod-{number}"), readonly=read_only)
        assert node.mount is not None
        mounting.ask("kill", "-9", str(node.status()["holder_pid"]), str(node.status()["worker_pid"]))
        node.mount.wait()
        until(lambda: not kubelet.identity("Probe").ready.value, "the dead mount is noticed")
        assert node.run_csi("--status").returncode == 1
        with refused("UNAVAILABLE"):
            kubelet.publish("csi-3", node.target("pod-3"))
        kubelet.unpublish("csi-1", node.target("pod-1"))

        node.start_mount()
        kubelet.publish("csi-3", node.target("pod-3"))
        assert node.run_pod("pod-3", HELLO_PROGRAM).startswith(GREETING)
        kubelet.publish("csi-2", node.target("pod-2"))
        assert node.run_pod("pod-2", HELLO_PROGRAM).startswith(GREETING), "the volume is mounted again"
        for number in (2, 3):
            kubelet.unpublish(f"csi-{number}", node.target(f"pod-{number}"))
    assert [mount.target for mount in node.mounts()] == [node.store]


def test_a_closure_is_prefetched_before_it_is_read(node: FakeNode, upstream: Upstream) -> None:
    with node.registered() as kubelet:
        hello = "/".join(HELLO_PROGRAM.split("/")[:4])
        kubelet.publish("csi-1", node.target("pod-1"), volume_context=EPHEMERAL | {"prefetch": hello})
        until(lambda: upstream.count(NARS) == 2 and not node.status()["prefetch_pending"], "both store paths", 30)
        upstream.clear()
        assert node.run_pod("pod-1", HELLO_PROGRAM).startswith(GREETING)
        assert upstream.count(NARS) == 0


def test_many_pods_share_one_download(node: FakeNode, upstream: Upstream) -> None:
    with node.registered() as kubelet:
        for number in range(8):
            kubelet.publish(f"csi-{number}", node.target(f"pod-{number}"))
        pods = [node.start_pod(f"pod-{number}", HELLO_PROGRAM) for number in range(8)]
        for pod in pods:
            output, _ = pod.communicate(timeout=30)
            assert output.decode().startswith(GREETING)
        assert upstream.count(NARS) == 2
        for number in range(8):
            kubelet.unpublish(f"csi-{number}", node.target(f"pod-{number}"))
    assert [mount.target for mount in node.mounts()] == [node.store]


@pytest.mark.proof
def test_calls_interrupted_by_a_kill_complete_when_repeated(node: FakeNode) -> None:
    """The plugin is killed during fifty calls. Kubelet repeats them, and nothing is left in the end."""
    volumes = {f"csi-{number}": node.target(f"pod-{number}") for number in range(50)}

    def call_all(call: Callable[[Client, str, Path], object], kill_after: float | None = None) -> int:
        """Return how many calls succeeded. The others lost their connections."""
        with node.registered() as kubelet, ThreadPoolExecutor(50) as threads:
            calls = [threads.submit(call, kubelet, *volume) for volume in volumes.items()]
            if kill_after is not None:
                time.sleep(kill_after)
                node.kill_csi()
            errors = [error for each in calls if (error := each.exception()) is not None]
        assert {error.code().name for error in errors if isinstance(error, grpc.Call)} <= {"UNAVAILABLE"}
        return len(calls) - len(errors)

    for call in (Client.publish, Client.unpublish):
        for delay in proofs.length((0.04,), (0.01, 0.02, 0.03, 0.04, 0.06, 0.1)):
            call_all(call, kill_after=delay)
            node.start_csi()
        assert call_all(call) == 50
        assert len(node.mounts()) == (51 if call is Client.publish else 1)
    assert [path.name for path in (node.place / "state").iterdir() if not path.name.startswith("~lock")] == []
    assert not any(target.exists() for target in volumes.values())


def test_calls_and_volumes_are_in_the_metrics(node: FakeNode) -> None:
    node.stop_csi()
    node.start_csi("--metrics", "127.0.0.1:0")
    with node.registered() as kubelet:
        kubelet.publish("csi-1", node.target("pod-1"))
        with refused("INVALID_ARGUMENT"):
            kubelet.unpublish("..", node.target("pod-1"))
    port = re.findall(r"metrics on port ([0-9]+)", node.log("csi"))[-1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    assert 'nar_volumes_published{mode="overlay"} 1.0' in lines
    assert 'nar_csi_calls_total{call="NodePublishVolume",code="OK"} 1.0' in lines
    assert 'nar_csi_calls_total{call="NodeUnpublishVolume",code="INVALID_ARGUMENT"} 1.0' in lines
    assert any(line.startswith('nar_csi_call_seconds_total{call="NodePublishVolume"} ') for line in lines)


def test_running_pods_find_a_store_path_that_is_published_late(waiting: list[subprocess.Popen[bytes]]) -> None:
    """One volume is an overlay, and the other is read-only."""
    for pod in waiting:
        assert pod.stdout is not None
        assert pod.stdout.readline() == b"at last\n"
