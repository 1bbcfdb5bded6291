"""If ``nar-serve serve`` can't start, it prints one line and exits with code 2, without output of gunicorn."""

import errno
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from narserve.program import run
from narserve.server.listener import explain
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
        (["--workers", "0"], {}, "nar-serve: --workers='0' is not a number"),
        ([], {"NAR_THREADS": "many"}, "nar-serve: NAR_THREADS='many'"),
        (["--listen", "somewhere"], {}, "nar-serve: --listen='somewhere' is not host:port"),
        (["--listen", ":many"], {}, "nar-serve: --listen: 'many' is not a port"),
        ([], {"HTTP_ADDR": "somewhere"}, "nar-serve: HTTP_ADDR='somewhere' is not host:port"),
        ([], {"NAR_METRICS": "maybe"}, "NAR_METRICS"),
        (["--store", "gopher://x"], {}, "not a store URL"),
        ([], {"NAR_VERIFY": "strict", "NAR_CACHE_DIR": "/dev/null/x"}, "NAR_VERIFY=strict needs"),
    ],
)
def test_a_bad_setting_is_reported_by_the_name_that_was_used(
    options: list[str], settings: dict[str, str], words: str
) -> None:
    assert words in refusal(*options, **settings)


def test_a_port_in_use_is_reported_with_advice_for_the_setting_that_was_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        address = f"127.0.0.1:{port}"
        by_option, by_variable = refusal("--listen", address), refusal(HTTP_ADDR=address)
        assert f"port {port} is already in use" in by_option
        assert by_option.endswith(f": --listen 127.0.0.1:{port + 1}")
        assert by_variable.endswith(f": HTTP_ADDR=127.0.0.1:{port + 1}")
        assert refusal(HTTP_ADDR="", PORT=str(port)).endswith(f": PORT={port + 1}")


@pytest.mark.parametrize(("port", "other"), [(8383, 8384), (65534, 65535), (65535, 65534)])
def test_the_advice_is_a_port_that_exists(port: int, other: int) -> None:
    assert explain(OSError(errno.EADDRINUSE, "in use"), "", port, "PORT").endswith(f": PORT={other}")


def test_missing_gunicorn_is_reported_with_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gunicorn", None)
    for name in [name for name in sys.modules if name.startswith(("gunicorn.", "narserve.server."))]:
        monkeypatch.delitem(sys.modules, name)
    assert run(["serve", "--store", str(tmp_path), "--cache-dir", "off"]) == 2
    assert "pip install '.[server]'" in capsys.readouterr().err
