"""Instances that misbehave, and servers that are not nar-serve: partial files never appear as whole; credentials are not shown."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.builders import Tree, exe, hash_part, link, listing_json, nar
from tests.commands.running import InProcess
from tests.e2e.upstream import Upstream

TREE: dict[str, Tree] = {"big": bytes(range(256)) * 2000, "d": {"sp ace?": exe(b"#!/bin/sh\n")}, "l": link("d")}
FILES = {"big": TREE["big"], "d/sp ace?": b"#!/bin/sh\n"}
BASE = f"{hash_part('x')}-x"
NAR = nar(TREE)


class OddInstance(Upstream):
    """Serves the tree as an instance would, but no NARs. Tests add faults with ``Upstream.fault``."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = f"{self.url}/nix/store/{BASE}"
        self._directory = directory

    def serve(self) -> Iterator["OddInstance"]:
        for name, data in FILES.items():
            file = self._directory / "store" / BASE / name
            file.parent.mkdir(parents=True, exist_ok=True)
            assert isinstance(data, bytes)
            file.write_bytes(data)
        self.mount("nix", self._directory)
        with ExitStack() as stack:
            stack.enter_context(self)
            stack.enter_context(self.fault("*format=nar", status=400, body=b"{}"))
            stack.enter_context(self.fault("*format=json&recursive", body=listing_json(TREE)))
            yield self


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[OddInstance]:
    yield from OddInstance(tmp_path / "served").serve()


def test_an_instance_without_faults_is_read(cli: InProcess, odd: OddInstance) -> None:
    cli.ok("get", odd.path)
    assert Path("x/big").read_bytes() == TREE["big"]
    assert os.access("x/d/sp ace?", os.X_OK)
    assert cli.ok("cat", f"{odd.path}/l/sp ace%3F").out == b"#!/bin/sh\n"


def interrupted(cli: InProcess, odd: OddInstance) -> Path:
    """Run a ``get`` that is cut in the middle of the big file. Returns the partial file."""
    with odd.fault("*/big", cut_after=300_000):
        done = cli("get", odd.path)
    assert (done.code, "kept in" in done.err) == (3, True)
    [name] = os.listdir()
    file = Path(name) / "root/big"
    assert 0 < file.stat().st_size <= 300_000
    odd.clear()
    return file


@pytest.mark.parametrize("ranges", [True, False])
def test_a_partial_file_is_completed(cli: InProcess, odd: OddInstance, ranges: bool) -> None:
    have = interrupted(cli, odd).stat().st_size
    with odd.fault("*/big", ranges=ranges):
        cli.ok("get", odd.path)
    assert Path("x/big").read_bytes() == TREE["big"]
    [request] = odd.seen("*/big")
    assert request.range == f"bytes={have}-{len(TREE['big']) - 1}"
    assert request.status == (206 if ranges else 200)


@pytest.mark.parametrize(
    "fault", [{"length": 1000}, {"body": b"an error page"}, {"headers": {"Content-Range": "bytes 0-9/10"}}]
)
def test_a_file_that_differs_from_the_listing_is_refused(
    cli: InProcess, odd: OddInstance, fault: dict[str, object]
) -> None:
    if "headers" in fault:
        interrupted(cli, odd)
    with odd.fault("*/big", **fault):
        done = cli("get", odd.path)
    assert (done.code, "the listing says" in done.err, os.listdir()) == (1, True, [])


def test_a_truncated_nar_does_not_appear_at_the_destination(cli: InProcess, odd: OddInstance) -> None:
    for length, code in ((str(len(NAR)), 3), ("3000", 1)):
        with odd.fault("*format=nar", body=NAR[:3000], headers={"Content-Length": length, "Connection": "close"}):
            done = cli("get", odd.path)
        assert (done.code, done.out, Path("x").exists()) == (code, b"", False)
        for staging in Path().iterdir():
            staging.rename(Path("..") / f"{staging.name}-{length}")
    with odd.fault("*format=nar", body=NAR):
        cli.ok("get", odd.path)
    assert nar({"big": Path("x/big").read_bytes()}) == nar({"big": TREE["big"]})
    assert odd.count("*/big") == 0


def test_a_server_that_is_not_nar_serve_is_reported(cli: InProcess, odd: OddInstance) -> None:
    for body in (b"<html>", b"{}", b'{"version":1,"root":{"type":"fifo"}}'):
        with odd.fault("*recursive", body=body):
            done = cli("ls", odd.path)
        assert (done.code, "is it a nar-serve server?" in done.err) == (3, True)
    for status, code in ((404, 1), (400, 2), (401, 3), (403, 3), (500, 3), (418, 3)):
        message = json.dumps({"error": f"Error {status}", "detail": "Do\nthat."}).encode()
        with odd.fault("*recursive", status=status, body=message):
            done = cli("ls", odd.path)
        assert (done.code, len(done.err.splitlines())) == (code, 1)
        assert f"Error {status}. Do\\nthat." in done.err


def test_credentials_are_sent_and_not_shown(cli: InProcess, odd: OddInstance) -> None:
    url = odd.path.replace("http://", "http://user:p%40ss@")
    found = cli.ok("find", url, "*")
    assert found.lines[0] == f"{odd.path}/big"
    assert odd.requests[0].headers["Authorization"] == "Basic dXNlcjpwQHNz"
    with odd.fault("*recursive", status=403):
        assert "ss" not in cli("ls", url).err.replace("nar-serve", "").replace("pass", "")


@pytest.mark.parametrize("command", ["cat", "get"])
def test_an_empty_file_is_compared_with_the_response(cli: InProcess, odd: OddInstance, command: str) -> None:
    with odd.fault("*format=json&recursive", body=listing_json(TREE | {"big": b""})):
        done = cli(command, f"{odd.path}/big")
    assert (done.code, done.out) == (1, b"")
    assert "the listing says 0" in done.err
    assert os.listdir() == []
