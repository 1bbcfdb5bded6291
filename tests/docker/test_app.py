"""The endpoints: calls of dockerd, and requests of other programs."""

import http.client
import json
import logging
import socket
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from flask.testing import FlaskClient

from narcore.errors import MountError
from narmount.docker import driver as driver_module
from narmount.docker.app import BODY_MAX, OUTCOMES, DockerCalls, create_docker_app
from narmount.docker.driver import Driver
from narmount.docker.records import Records
from narmount.docker.service import Service
from narmount.volumes.request import VolumeRequest
from narmount.volumes.targets import ID_MAX
from tests.docker.fakevolumes import FakeVolumes

PATH = f"/nix/store/{'0' * 32}-hello"
CALLS = ("Create", "Mount", "Path", "Unmount", "Remove", "Get", "List", "Capabilities")
NAMED = CALLS[:6]

HOSTILE = (
    "", ".", "..", "-v", ".hidden", "_v", "a/b", "../../etc", "/etc", "a\0b", "a\n", "a b", "a:b", "a,b", "a\\b", "é",
    "a" * (ID_MAX + 1), None, 1, True, ["a"], {"a": 1},
)  # fmt: skip


@pytest.fixture
def volumes() -> FakeVolumes:
    return FakeVolumes()


@pytest.fixture
def made(volumes: FakeVolumes, tmp_path: Path) -> tuple[FlaskClient, DockerCalls]:
    driver = Driver(volumes, Records(tmp_path / "records"), tmp_path / "mounts", ("main", "other"))
    app, calls = create_docker_app(driver, lambda: {"volumes": driver.status()})
    return app.test_client(), calls


@pytest.fixture
def client(made: tuple[FlaskClient, DockerCalls]) -> FlaskClient:
    return made[0]


def call(client: FlaskClient, name: str, **body: object) -> dict[str, Any]:
    """Make a call that must succeed, and return its response."""
    answer = client.post(f"/VolumeDriver.{name}", json=body)
    assert answer.status_code == 200
    assert answer.content_type == "application/vnd.docker.plugins.v1.2+json"
    found: dict[str, Any] = answer.get_json(force=True)
    assert found.pop("Err") == ""
    return found


def refused(client: FlaskClient, name: str, **body: object) -> str:
    """Make a call that must be refused, and return the reason."""
    answer = client.post(f"/VolumeDriver.{name}", json=body)
    assert 400 <= answer.status_code < 500
    found = json.loads(answer.data)
    assert list(found) == ["Err"]
    return str(found["Err"])


def test_the_plugin_implements_volumes(client: FlaskClient) -> None:
    answer = client.post("/Plugin.Activate")
    assert answer.get_json(force=True) == {"Implements": ["VolumeDriver"]}


def test_a_volume_is_created_mounted_and_removed(client: FlaskClient, tmp_path: Path) -> None:
    assert call(client, "Capabilities") == {"Capabilities": {"Scope": "local"}}
    assert call(client, "List") == {"Volumes": []}
    assert call(client, "Create", Name="v", Opts={"mode": "overlay", "prefetch": PATH}) == {}
    assert call(client, "Path", Name="v") == {"Mountpoint": ""}
    where = str(tmp_path / "mounts" / "v")
    assert call(client, "Mount", Name="v", ID="one") == {"Mountpoint": where}
    assert call(client, "Path", Name="v") == {"Mountpoint": where}
    found = call(client, "Get", Name="v")["Volume"]
    assert found.pop("CreatedAt").endswith("Z")
    status = {"cache": "main", "mode": "overlay", "users": 1, "prefetch": [PATH.removeprefix("/nix/store/")]}
    assert found == {"Name": "v", "Mountpoint": where, "Status": status}
    assert call(client, "List") == {"Volumes": [{"Name": "v", "Mountpoint": where}]}
    with patch.object(driver_module, "is_mounted_elsewhere", return_value=True):
        assert "in use" in refused(client, "Remove", Name="v")
    assert call(client, "Unmount", Name="v", ID="one") == {}
    assert call(client, "Remove", Name="v") == {}
    assert "no such volume" in refused(client, "Get", Name="v")


def test_a_call_repeated_without_its_body_is_an_error(made: tuple[FlaskClient, DockerCalls], tmp_path: Path) -> None:
    """The call Get closes the connection instead: dockerd takes any response without a volume as "no such volume"."""
    client, calls = made
    service = Service(tmp_path / "x.sock")
    service.start(client.application)
    for endpoint in NAMED:
        connection = http.client.HTTPConnection("localhost", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(tmp_path / "x.sock"))
        connection.request("POST", f"/VolumeDriver.{endpoint}", b"")
        if endpoint == "Get":
            with pytest.raises(http.client.RemoteDisconnected):
                connection.getresponse()
        else:
            assert b"dockerd repeated it without its body; try again" in connection.getresponse().read()
        connection.close()
        assert calls.families()[0].values[endpoint, "error"] == 1
    service.close()


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
@pytest.mark.parametrize("endpoint", NAMED)
def test_invalid_names_are_refused(
    client: FlaskClient, volumes: FakeVolumes, tmp_path: Path, endpoint: str, name: object
) -> None:
    assert refused(client, endpoint, Name=name, ID="one")
    assert not volumes.requests
    assert list((tmp_path / "records").iterdir()) == []


@pytest.mark.parametrize("identity", [None, "", 1, "x" * 257], ids=repr)
def test_mount_and_unmount_need_an_id(client: FlaskClient, identity: object) -> None:
    call(client, "Create", Name="v")
    for endpoint in ("Mount", "Unmount"):
        assert "needs the ID of a mount" in refused(client, endpoint, Name="v", ID=identity)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"colour": "red"}, "unknown option 'colour'; the options are cache, group, mode, prefetch"),
        ({"Mode": "ro"}, "unknown option 'Mode'"),
        ({"mode": "rw"}, "unknown mode 'rw'; use overlay"),
        ({"mode": ["ro"]}, "the option 'mode' is not a string"),
        ({"cache": "https://evil.example"}, "cache takes a name, not a URL; the caches here are main, other"),
        ({"cache": ""}, "unknown cache ''"),
        ({"group": "users"}, "is not a group id"),
        ({"group": "-1"}, "is not a group id"),
        ({"group": "4294967295"}, "is not a group id"),
        ({"group": "1", "mode": "ro"}, "leave out group, or use mode=overlay"),
        ({"prefetch": "hello"}, "prefetch='hello' is not a store path"),
        ({"prefetch": f"{PATH}/bin"}, "is not a store path"),
        ({"prefetch": "/nix/store/../../etc/passwd"}, "is not a store path"),
        ({"prefetch": " ".join(f"/nix/store/{'0' * 32}-{number}" for number in range(101))}, "at most 100 store paths"),
        ("mode=ro", "Opts is not an object"),
        ([], "Opts is not an object"),
    ],
)
def test_invalid_options_are_refused(client: FlaskClient, options: object, reason: str) -> None:
    assert reason in refused(client, "Create", Name="v", Opts=options)
    assert call(client, "List") == {"Volumes": []}


def test_a_volume_is_mounted_with_its_options(client: FlaskClient, volumes: FakeVolumes) -> None:
    other = PATH.replace("hello", "world")
    call(client, "Create", Name="v", Opts={"cache": "other", "group": "100", "prefetch": f"{PATH}, {other},{PATH}"})
    call(client, "Mount", Name="v", ID="one")
    names = tuple(path.removeprefix("/nix/store/") for path in (PATH, other))
    assert volumes.requests == [VolumeRequest("other", "overlay", 100, names)]


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b"null", b"[]", b'"x"', b"[" * 60_000, b"NaN", b'{"Name": "\\ud800"}'], ids=repr
)
@pytest.mark.parametrize("endpoint", NAMED)
def test_invalid_bodies_are_refused(client: FlaskClient, endpoint: str, body: bytes) -> None:
    answer = client.post(f"/VolumeDriver.{endpoint}", data=body)
    assert 400 <= answer.status_code < 500
    assert json.loads(answer.data)["Err"]


def test_a_body_that_is_too_large_is_refused(client: FlaskClient) -> None:
    answer = client.post("/VolumeDriver.Create", data=b" " * (BODY_MAX + 1))
    assert answer.status_code == 413
    assert "exceeds 65536 bytes" in json.loads(answer.data)["Err"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 404),
        ("POST", "/VolumeDriver.Format", 404),
        ("GET", "/VolumeDriver.List", 405),
        ("GET", "/../etc", 404),
    ],
)
def test_unknown_calls_are_refused(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method)
    assert (answer.status_code, json.loads(answer.data)) == (
        status,
        {"Err": "there is no such call; try POST /VolumeDriver.List"},
    )


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (MountError("the cache is dead; start it again"), "the cache is dead; start it again"),
        (OSError(28, "No space left on device", "/secret"), "No space left on device; see the log of"),
        (ZeroDivisionError("secret"), "internal error; see the log of nar-serve docker-volume"),
    ],
)
def test_an_error_is_reported_without_its_traceback(
    client: FlaskClient, volumes: FakeVolumes, failure: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    call(client, "Create", Name="v")
    volumes.fails = failure
    with caplog.at_level(logging.ERROR):
        answer = client.post("/VolumeDriver.Mount", json={"Name": "v", "ID": "one"})
    assert answer.status_code == 500
    error = json.loads(answer.data)["Err"]
    assert error.startswith(message)
    assert "Traceback" not in error
    assert "secret" not in error
    assert str(failure) in caplog.text


def test_calls_are_counted_by_outcome(made: tuple[FlaskClient, DockerCalls]) -> None:
    client, calls = made
    call(client, "Create", Name="v")
    refused(client, "Create", Name="..")
    (family,) = calls.families()
    assert {key: count for key, count in family.values.items() if count} == {
        ("Create", "ok"): 1,
        ("Create", "refused"): 1,
    }
    assert set(family.values) == {(name, end) for name in CALLS for end in OUTCOMES}


def test_the_status_lists_the_volumes(client: FlaskClient) -> None:
    call(client, "Create", Name="v")
    (volume,) = client.get("/status").get_json(force=True)["volumes"]
    assert volume.pop("created")
    assert volume == {"name": "v", "cache": "main", "mode": "overlay", "users": 0}
