"""Fixtures of all tests: a clean environment, logging, and one configuration of hypothesis."""

import logging
import os

import pytest
from hypothesis import settings

from tests import needs

# No deadlines: they would measure the machine and not the code, and two test runs on one core would exceed them.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> None:
    """Remove the settings in the environment of the test run; a test sets the ones that it needs."""
    for name in list(os.environ):
        if name.startswith("NAR_") or name in {"NIX_CACHE_URL", "PORT", "HTTP_ADDR", "DOMAIN"}:
            del os.environ[name]


@pytest.fixture(autouse=True)
def _logs_reach_caplog() -> None:
    """Undo the logging setup of the WSGI entry and of commands, which would hide logs from later tests."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] in ("api", "narcore", "narmount", "narserve") and isinstance(logger, logging.Logger):
            logger.propagate = True
            logger.setLevel(logging.NOTSET)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End a run with a table of what skipped tests need."""
    skipped = terminalreporter.stats.get("skipped", [])
    lines = needs.table(str(report.longrepr[2]) for report in skipped)
    if lines:
        terminalreporter.section("skipped tests")
        for line in lines:
            terminalreporter.write_line(line)
