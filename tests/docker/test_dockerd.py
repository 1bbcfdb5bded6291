"""A real dockerd, a real mount, and containers that run programs from their volumes."""

import itertools
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import builders, proofs
from tests.builders import Exe, Tree
from tests.docker import daemons
from tests.docker.daemons import IMAGE, IMAGE_WITH_STORE, SECONDS, Dockerd, Plugin, running_plugin
from tests.e2e.upstream import Upstream
from tests.mount import mounting
from tests.mount.conftest import write
from tests.mount.mounting import Mounted, until
from tests.mount.samples import KEY, base

NUMBERS = itertools.count(1)


def store_path(name: str) -> str:
    return f"/nix/store/{base(name)}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a binary cache."""
    daemons.need_docker()
    directory = tmp_path_factory.mktemp("served")
    tools: dict[str, Tree] = {"bin": {"busybox": Exe(daemons.busybox())}, "share": {"text": b"out of the store\n"}}
    write(directory, builders.binary_cache({"tools": tools, "other": {"file": b"other\n"}}, secret_key=KEY))
    return directory


@pytest.fixture(scope="module")
def mount(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with Upstream() as upstream:
        url = upstream.mount("cache", served)
        directory = tmp_path_factory.mktemp("mount")
        with mounting.mounted(directory, url, "--allow-other", key=str(KEY.public_key)) as mounted:
            yield mounted


@pytest.fixture(scope="module")
def plugin(mount: Mounted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    directory = tmp_path_factory.mktemp("plugin")
    with running_plugin(Plugin(directory, {"main": mount.target}, mount.run_dir, mount.environ)) as plugin:
        yield plugin


@pytest.fixture(scope="module")
def dockerd(plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    dockerd = Dockerd(tmp_path_factory.mktemp("d"))
    try:
        dockerd.start()
        dockerd.import_images()
        yield dockerd
    finally:
        dockerd.close()


@pytest.fixture
def volume(dockerd: Dockerd, plugin: Plugin) -> Iterator[str]:
    """A new volume. At the end of the test it must be possible to remove it."""
    name = f"volume-{next(NUMBERS)}"
    dockerd.do("volume", "create", "--driver", plugin.name, name)
    yield name
    dockerd.do("volume", "rm", name)
    assert not plugin.mounted()


def run(volume: str, *command: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the arguments of ``docker run`` for a program from the store."""
    box = f"{store_path('tools')}/bin/busybox"
    return ("run", "--rm", "--network=none", *options, "-v", f"{volume}:/nix/store", IMAGE, box, *command)


def running(dockerd: Dockerd, volume: str) -> str:
    """Start a container that runs a program from the store for a long time, and return its id."""
    box = f"{store_path('tools')}/bin/busybox"
    return dockerd.do(
        "run",
        "--detach",
        "--network=none",
        "--stop-signal=KILL",
        "-v",
        f"{volume}:/nix/store",
        IMAGE,
        box,
        "sleep",
        "3600",
    ).strip()


def inside(dockerd: Dockerd, container: str, script: str) -> str:
    return dockerd.do("exec", container, f"{store_path('tools')}/bin/busybox", "sh", "-euc", script)


def test_a_container_runs_a_program_from_the_store(dockerd: Dockerd, volume: str) -> None:
    assert dockerd.do(*run(volume, "cat", f"{store_path('tools')}/share/text")) == "out of the store\n"
    found = dockerd.inspect(volume)
    assert (found["Mountpoint"], found["Status"]) == ("", {"cache": "main", "mode": "overlay", "users": 0})


def test_writes_stay_in_their_volume(dockerd: Dockerd, plugin: Plugin, mount: Mounted, volume: str) -> None:
    write_it = "echo mine > /nix/store/new; echo changed > $0/share/text; rm $0/bin/busybox"
    dockerd.do(*run(volume, "sh", "-euc", write_it, store_path("tools")))
    look = ("run", "--rm", "--network=none", "-v", f"{volume}:/nix/store", IMAGE, "/bin/sh", "-c")
    assert dockerd.do(*look, f"cat /nix/store/new {store_path('tools')}/share/text") == "mine\nchanged\n"
    assert dockerd.do(*look, f"ls {store_path('tools')}/bin") == ""
    dockerd.do("volume", "create", "--driver", plugin.name, "another")
    assert "No such file" in dockerd.fails(*run("another", "cat", "/nix/store/new"))
    assert dockerd.do(*run("another", "cat", f"{store_path('tools')}/share/text")) == "out of the store\n"
    dockerd.do("volume", "rm", "another")
    assert mounting.ask("cat", mount.path(base("tools")) / "share/text").output == b"out of the store\n"


def test_nothing_is_left_of_a_removed_volume(dockerd: Dockerd, plugin: Plugin) -> None:
    for _ in range(2):
        dockerd.do("volume", "create", "--driver", plugin.name, "twice")
        assert "No such file" in dockerd.fails(*run("twice", "cat", "/nix/store/new"))
        dockerd.do(*run("twice", "touch", "/nix/store/new"))
        dockerd.do("volume", "rm", "twice")
        assert not [path for path in plugin.state_dir.rglob("*") if "twice" in path.name]


@pytest.mark.parametrize("image", [IMAGE, IMAGE_WITH_STORE])
def test_a_read_only_volume_can_not_be_written(dockerd: Dockerd, plugin: Plugin, image: str) -> None:
    """The volume is mounted with nocopy: otherwise dockerd would fail to change the mode of a new volume."""
    dockerd.do("volume", "create", "--driver", plugin.name, "-o", "mode=ro", "fixed")
    try:
        for option in ("-v=fixed:/nix/store:ro,nocopy", "--mount=type=volume,src=fixed,dst=/nix/store,volume-nocopy"):
            box = f"{store_path('tools')}/bin/busybox"
            command = ("run", "--rm", "--network=none", option, image, box)
            assert dockerd.do(*command, "cat", f"{store_path('tools')}/share/text") == "out of the store\n"
            assert "Read-only file system" in dockerd.fails(*command, "touch", "/nix/store/new")
    finally:
        dockerd.do("volume", "rm", "fixed")
    assert not plugin.mounted()


def test_an_anonymous_volume_belongs_to_one_container(dockerd: Dockerd, plugin: Plugin) -> None:
    listing = ("volume", "ls", "--quiet", f"--filter=driver={plugin.name}")
    before = dockerd.do(*listing)
    box = f"{store_path('tools')}/bin/busybox"
    command = ("run", "--rm", "--network=none", f"--volume-driver={plugin.name}", "-v=/nix/store", IMAGE, box)
    script = "test ! -e /nix/store/new; echo mine > /nix/store/new; cat /nix/store/new"
    for _ in range(2):
        assert dockerd.do(*command, "sh", "-euc", script) == "mine\n"
    assert dockerd.do(*listing) == before
    assert not plugin.mounted()


def test_the_group_of_a_volume_may_write(dockerd: Dockerd, plugin: Plugin) -> None:
    dockerd.do("volume", "create", "--driver", plugin.name, "-o", "group=1234", "grouped")
    try:
        touch = ("touch", "/nix/store/new")
        assert "Permission denied" in dockerd.fails(*run("grouped", *touch, options=("--user=1000:1000",)))
        dockerd.do(*run("grouped", *touch, options=("--user=1000:1234",)))
    finally:
        dockerd.do("volume", "rm", "grouped")


def test_invalid_options_and_names_are_refused(dockerd: Dockerd, plugin: Plugin) -> None:
    create = ("volume", "create", "--driver", plugin.name)
    assert "unknown option 'colour'; the options are cache, group" in dockerd.fails(*create, "-o", "colour=red", "bad")
    assert "unknown cache 'else'; the caches here are main" in dockerd.fails(*create, "-o", "cache=else", "bad")
    assert dockerd.fails(*create, "../bad")
    assert "bad" not in dockerd.do("volume", "ls", "--quiet")


def test_containers_share_a_volume_until_the_last_one_ends(dockerd: Dockerd, plugin: Plugin, volume: str) -> None:
    first, second = running(dockerd, volume), running(dockerd, volume)
    assert len(plugin.mounted()) == 1
    assert "in use" in dockerd.fails("volume", "rm", volume)
    inside(dockerd, first, "echo shared > /nix/store/new")
    dockerd.do("rm", "--force", first)
    assert inside(dockerd, second, "cat /nix/store/new") == "shared\n"
    assert len(plugin.mounted()) == 1
    dockerd.do("rm", "--force", second)
    assert not plugin.mounted()


def test_a_container_continues_while_the_plugin_is_killed_and_restarted(
    dockerd: Dockerd, plugin: Plugin, volume: str
) -> None:
    container = running(dockerd, volume)
    plugin.kill()
    assert inside(dockerd, container, f"cat {store_path('other')}/file; echo written > /nix/store/new") == "other\n"
    assert plugin.mounted()
    plugin.start()
    assert [volume["users"] for volume in plugin.status()["volumes"]] == [1]
    assert inside(dockerd, container, "cat /nix/store/new") == "written\n"
    assert dockerd.do(*run(volume, "cat", "/nix/store/new")) == "written\n"
    assert plugin.mounted()
    plugin.kill()
    plugin.start()
    dockerd.do("rm", "--force", container)
    assert not plugin.mounted()
    assert dockerd.do(*run(volume, "cat", "/nix/store/new")) == "written\n"


def test_a_call_waits_while_the_plugin_is_down(dockerd: Dockerd, plugin: Plugin, volume: str) -> None:
    assert plugin.stop() == 0
    before = len(dockerd.log())
    with ThreadPoolExecutor(1) as executor:
        answer = executor.submit(dockerd.do, *run(volume, "echo", "back"))
        until(lambda: "Unable to connect to plugin" in dockerd.log()[before:], "the first attempt of dockerd")
        assert not answer.done()
        plugin.start()
        assert answer.result(SECONDS) == "back\n"


INTERRUPTED = re.compile("EOF|connect|repeated it without its body")


def do_repeatedly(dockerd: Dockerd, *arguments: str) -> str:
    """Run the docker client until it succeeds. A container fails if the plugin is killed during its call."""
    for _ in range(6):
        done = dockerd.docker(*arguments)
        if done.returncode == 0:
            return done.stdout
        assert INTERRUPTED.search(done.stderr), done.stderr
    raise AssertionError(done.stderr)


@pytest.mark.proof
def test_containers_start_and_end_while_the_plugin_is_killed_repeatedly(
    dockerd: Dockerd, plugin: Plugin, volume: str
) -> None:
    containers = proofs.length(6, 40)
    with ThreadPoolExecutor(4) as executor:
        answers = [
            executor.submit(do_repeatedly, dockerd, *run(volume, "echo", str(number))) for number in range(containers)
        ]
        for _ in range(proofs.length(2, 10)):
            time.sleep(0.2)
            plugin.kill()
            plugin.start()
        assert [answer.result(SECONDS) for answer in answers] == [f"{number}\n" for number in range(containers)]
    assert dockerd.inspect(volume)["Name"] == volume


def test_after_a_reboot_a_volume_has_its_files_and_no_users(dockerd: Dockerd, plugin: Plugin, volume: str) -> None:
    dockerd.do(*run(volume, "touch", "/nix/store/written"))
    assert plugin.call("Mount", Name=volume, ID="an-earlier-boot")["Err"] == ""
    assert len(plugin.mounted()) == 1
    plugin.reboot()
    assert [volume["users"] for volume in plugin.status()["volumes"]] == [0]
    assert not plugin.mounted()
    dockerd.do(*run(volume, "ls", "/nix/store/written"))


def test_a_container_starts_again_after_a_restart_of_dockerd(dockerd: Dockerd, plugin: Plugin, volume: str) -> None:
    container = running(dockerd, volume)
    dockerd.stop()
    assert not plugin.mounted()
    dockerd.start()
    dockerd.do("start", container)
    assert inside(dockerd, container, f"cat {store_path('tools')}/share/text") == "out of the store\n"
    dockerd.do("rm", "--force", container)


def test_a_killed_dockerd_leaves_no_volume_in_use_forever(dockerd: Dockerd, plugin: Plugin, volume: str) -> None:
    container = running(dockerd, volume)
    inside(dockerd, container, "echo written > /nix/store/new")
    dockerd.kill()
    dockerd.start()
    assert dockerd.inspect(volume)["Status"]["users"] == 1
    dockerd.do("rm", "--force", container)
    assert dockerd.do(*run(volume, "cat", "/nix/store/new")) == "written\n"
    assert not plugin.mounted()


def test_metrics_and_status_show_the_volumes(plugin: Plugin, mount: Mounted, dockerd: Dockerd, volume: str) -> None:
    plugin.stop()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    plugin.start("--metrics", address)
    container = running(dockerd, volume)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    assert 'nar_volumes_published{mode="overlay"} 1.0' in metrics
    assert 'nar_docker_calls_total{call="Mount",outcome="ok"} 1.0' in metrics
    assert 'nar_docker_calls_total{call="Mount",outcome="error"} 0.0' in metrics
    status = plugin.status()
    (cache,) = status["caches"]
    assert (cache["name"], cache["directory"]) == ("main", str(mount.target))
    assert cache["mode"] in ("passthrough", "plain")
    text = plugin.run("--status", f"--socket={plugin.socket}").stdout
    assert re.search(rf"^volume {volume}  overlay of main, 1 users$", text, re.MULTILINE)
    dockerd.do("rm", "--force", container)


def test_containers_of_a_dead_mount_work_after_it_is_mounted_again(
    dockerd: Dockerd, plugin: Plugin, mount: Mounted, volume: str
) -> None:
    container = running(dockerd, volume)
    os.killpg(mount.process.pid, signal.SIGKILL)
    mount.process.wait()
    assert "has died; run nar-serve mount" in dockerd.fails(*run(volume, "echo", "dead"))
    assert "error" in plugin.status()["caches"][0]
    done = mount.run(mount.target, "--allow-other")
    assert done.returncode == 0, done.stderr
    dockerd.do("restart", "--time=0", container)
    assert inside(dockerd, container, f"cat {store_path('tools')}/share/text") == "out of the store\n"
    assert dockerd.do(*run(volume, "echo", "alive")) == "alive\n"
    dockerd.do("rm", "--force", container)
    assert mount.run("--unmount", mount.target).returncode == 0
