"""What all tests share: a clean environment, and one way to run hypothesis."""

import logging
import os

import pytest
from hypothesis import settings

# Deadlines measure the machine, not the code, and two test runs on one core would trip them.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> None:
    """The settings of whoever runs the tests must not reach them: a test sets what it needs."""
    for name in list(os.environ):
        if name.startswith("NAR_") or name in {"NIX_CACHE_URL", "PORT", "HTTP_ADDR", "DOMAIN"}:
            del os.environ[name]


@pytest.fixture(autouse=True)
def _logs_can_be_looked_at() -> None:
    """What sets up the logs of a process (the WSGI entry, a command) keeps them from whoever looks at them in a later test."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] in ("api", "narcore") and isinstance(logger, logging.Logger):
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
