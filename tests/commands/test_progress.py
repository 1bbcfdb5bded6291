"""What somebody at a terminal is told while nothing comes."""

import sys

import pytest

from narserve.terminal import progress
from narserve.terminal.progress import patience
from tests.mount.mounting import until


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
def test_who_waits_is_told_for_whom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said: list[str] = []

    def is_said() -> bool:
        said.append(capsys.readouterr().err)
        return "no answer as yet from https://x.example" in "".join(said)

    with patience("https://x.example"):
        until(is_said, "a line")


def test_an_answer_in_time_goes_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with patience("https://x.example"):
        pass
    assert capsys.readouterr().err == ""
