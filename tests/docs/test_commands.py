"""The commands in the documents work: each shell block runs, or has a mark that says why it does not.

CONTRIBUTING.md describes the marks. The blocks of a document run one after another, in a directory that looks like a checkout, and
with their own HOME. They use a binary cache that Nix wrote, and a server of it in place of localhost:8383.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests import ROOT
from tests.docs.conftest import PACKAGE, Published
from tests.docs.documents import Block, Document, documents

RUNS = ("sh", "sh server", "pycon")
MARKS = ("sh network", "sh account", "sh cluster", "sh root", "sh long")
OTHER = ("text", "yaml", "json", "nix", "vcl", "mermaid")

# The tests replace these URLs with that of their own binary cache.
STORES = re.compile(r"https://cache\.(?:example\.org|nixos\.org)(?![\w./-])")

SECONDS = 30
START_SECONDS = 20

DOCUMENTS = [document for document in documents() if document.name != "CHANGELOG.md"]


@dataclass(slots=True)
class Reader:
    """Runs commands like a reader of a document. ``port`` is the port of the server that was started last."""

    published: Published
    directory: Path
    port: int
    servers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def run(self, block: Block) -> None:
        """Run a block. Fails the test if one of its commands fails."""
        if block.info == "sh server":
            self._start_server(block)
            return
        text = self.filled_in(block.text)
        if block.info == "pycon":
            (self.directory / "block").write_text(text)
            command = [sys.executable, "-m", "doctest", str(self.directory / "block")]
        else:
            command = _bash(text)
        done = subprocess.run(
            command,
            cwd=self.directory / "checkout",
            env=self.environ(self.port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"line {block.line}:\n{text}\n{done.stdout.decode(errors='replace')}"

    def filled_in(self, text: str) -> str:
        """Return the text with its placeholders replaced by real names."""
        text = re.sub(
            r"\b(localhost|127\.0\.0\.1):8383\b", rf"\1:{self.port}", text.replace("<hash>", self.published.hash_part)
        )
        return STORES.sub(self.published.cache.as_uri(), text)

    def environ(self, port: int) -> dict[str, str]:
        home = self.directory / "home"
        inherited = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        return inherited | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "PORT": str(port),
            "NIX_CONF_DIR": str(self.directory / "nix"),
            "NIX_REMOTE": f"local?root={home}/nix",
            **self.published.settings(),
        }

    def _start_server(self, block: Block) -> None:
        self.stop_servers()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        text = self.filled_in(block.text)
        log = (self.directory / "log").open("wb")
        with log:
            server = subprocess.Popen(
                _bash(text),
                cwd=self.directory / "checkout",
                env=self.environ(self.port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.servers.append(server)
        deadline = time.monotonic() + START_SECONDS
        while not _is_healthy(self.port):
            assert server.poll() is None, f"{text}\n{(self.directory / 'log').read_text()}"
            assert time.monotonic() < deadline, f"{text}\n{(self.directory / 'log').read_text()}"
            time.sleep(0.05)

    def stop_servers(self) -> None:
        """Stop all servers that were started."""
        for server in self.servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
        self.servers.clear()


def _bash(text: str) -> list[str]:
    return ["bash", "-euo", "pipefail", "-c", text]


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def reader(published: Published, tmp_path: Path) -> Iterator[Reader]:
    for name in ("home", "nix", "checkout"):
        (tmp_path / name).mkdir()
    (tmp_path / "nix" / "nix.conf").write_text("build-users-group =\nsubstituters =\n")
    for path in ROOT.iterdir():
        if not path.name.startswith(".") or path.name == ".ci":
            (tmp_path / "checkout" / path.name).symlink_to(path)
    for name in (".venv", "venv"):
        (tmp_path / "checkout" / name).symlink_to(sys.prefix)
    reader = Reader(published, tmp_path, published.port)
    yield reader
    reader.stop_servers()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_block_has_a_language_and_a_known_mark(document: Document) -> None:
    for block in document.blocks():
        assert block.info in RUNS + MARKS + OTHER, f"{document.name}, line {block.line}: ```{block.info}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_examples_of_other_files_are_well_formed(document: Document) -> None:
    for block in document.blocks():
        if block.info == "yaml":
            yaml.safe_load(block.text)
        elif block.info == "json":
            json.loads(block.text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_commands_run(document: Document, request: pytest.FixtureRequest) -> None:
    blocks = [block for block in document.blocks() if block.info in RUNS]
    if not blocks:
        return
    reader: Reader = request.getfixturevalue("reader")
    for block in blocks:
        reader.run(block)


def test_a_failing_command_fails_the_test(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="line 7"):
        reader.run(Block("sh", "false | cat\n", 7))
    reader.run(Block("sh", f"curl -fsS http://localhost:8383/nix/store/<hash>-{PACKAGE}/bin/hello\n", 1))
