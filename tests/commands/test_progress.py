"""The message on a terminal while a server does not answer."""

import sys

import pytest

from narserve.terminal import progress
from narserve.terminal.progress import patience
from tests.mount.mounting import until


@pytest.fixture
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)


@pytest.mark.usefixtures("without_delay")
def test_a_slow_server_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    output: list[str] = []

    def is_printed() -> bool:
        output.append(capsys.readouterr().err)
        return "waiting for an answer from https://x.example" in "".join(output)

    with patience("https://x.example"):
        until(is_printed, "a line")


def test_a_fast_answer_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with patience("https://x.example"):
        pass
    assert capsys.readouterr().err == ""
