"""What keeps ``nar-serve serve`` from starting: one line, exit code 2, and no page of gunicorn's."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from narserve.program import run
from tests import ROOT
from tests.e2e.fronts import environment


def refusal(*options: str, **settings: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "narserve", "serve", *options],
        cwd=ROOT,
        env=environment({"HTTP_ADDR": "127.0.0.1:0", "NAR_CACHE_DIR": "off"} | settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("WARNING")]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("nar-serve: ")
    return lines[0]


@pytest.mark.parametrize(
    ("options", "settings", "words"),
    [
        (["--workers", "0"], {}, "NAR_WORKERS"),
        ([], {"NAR_THREADS": "many"}, "NAR_THREADS"),
        (["--listen", "somewhere"], {}, "HTTP_ADDR"),
        ([], {"NAR_METRICS": "maybe"}, "NAR_METRICS"),
        (["--store", "gopher://x"], {}, "not a store URL"),
        ([], {"NAR_VERIFY": "strict", "NAR_CACHE_DIR": "/dev/null/x"}, "NAR_VERIFY=strict needs"),
    ],
)
def test_a_bad_setting(options: list[str], settings: dict[str, str], words: str) -> None:
    assert words in refusal(*options, **settings)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port} is taken" in refusal("--listen", f"127.0.0.1:{port}")


def test_without_gunicorn_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gunicorn", None)
    for name in [name for name in sys.modules if name.startswith(("gunicorn.", "narserve.server."))]:
        monkeypatch.delitem(sys.modules, name)
    assert run(["serve", "--store", str(tmp_path), "--cache-dir", "off"]) == 2
    assert "pip install '.[server]'" in capsys.readouterr().err
