"""Tests the running application against its OpenAPI document, with schemathesis."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT
from tests.e2e import links, trees
from tests.e2e.conftest import RunFront
from tests.e2e.nixcaches import NixCaches

PROGRAM = Path(sys.executable).with_name("schemathesis")
EXAMPLES = 12  # for each URL and method, in addition to the boundary values of the parameters
SECONDS = 120
TREES = (links.HELLO, links.LINKS_NAME, trees.TYPES_NAME, trees.WEBSITE_NAME)


def nodes(caches: NixCaches) -> Iterator[tuple[str, str]]:
    """Yield nodes that exist: the base name of a store path and a path in it."""
    for name in TREES:
        for entry in caches.entries(name):
            if entry.path:
                yield caches.store_paths[name].rpartition("/")[2], entry.path.decode()


def test_responses_conform_to_the_openapi_document(run_front: RunFront, caches: NixCaches, tmp_path: Path) -> None:
    with run_front(caches.cache("zstd").as_uri(), tmp_path / "cache", {"NAR_METRICS": "1"}) as front:
        command = [
            str(PROGRAM),
            "--config-file",
            str(tmp_path / "schemathesis.toml"),
            "run",
            f"{front.url}/openapi.json",
        ]
        command += [
            "--checks=all",
            f"--max-examples={EXAMPLES}",
            "--workers=2",
            "--seed=1",
            "--generation-database=none",
        ]
        (tmp_path / "schemathesis.toml").write_text("color = false\n")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {
            "SCHEMATHESIS_HOOKS": "tests.e2e.schemahooks",
            "NODES": json.dumps(list(nodes(caches))),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        assert "Missing test data" not in done.stdout, done.stdout[-6000:]  # most requests named an existing path
