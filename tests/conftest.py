"""Fixtures of all tests: a clean environment, logging, and one configuration of hypothesis.

``--fast`` selects the tests that start no servers and need no tools. With pytest-xdist (``-n 3``), the tests of a file run in one
process, and so do all tests that mount.
"""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import ROOT, needs, proofs

# Folders whose tests start servers, programs, mounts or browsers. A slow test elsewhere has the marker "slow".
SLOW = frozenset({"browser", "commands", "csi", "deploy", "dev", "docker", "docs", "e2e", "mount", "server", "volumes"})

# Folders whose tests run in the same process of pytest-xdist. The tests of "mounts" would disturb each other: they share the mounts
# of the machine and dockerd's directory of plugins. The tests of "servers" share servers that take long to start.
GROUPS = {"csi": "mounts", "docker": "mounts", "mount": "mounts", "volumes": "mounts", "e2e": "servers"}

# Takes a third of the time of its group, and starts servers of its own.
ALONE = ROOT / "tests" / "e2e" / "test_files.py"

# No deadlines: they would measure the machine and not the code, and two test runs on one core would exceed them.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("fast", deadline=None, max_examples=20)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that start no servers and need no tools")
    parser.addoption("--full-length", action="store_true", help="long proofs at full length: python -m tests.proofs")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and tell ``needs`` about ``--fast``."""
    config.addinivalue_line("markers", "slow: takes seconds or starts programs; --fast leaves it out")
    config.addinivalue_line("markers", "proof: runs at full length with python -m tests.proofs")
    needs.fast = config.getoption("--fast")
    proofs.full = config.getoption("--full-length")
    if needs.fast:
        settings.load_profile("fast")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the slow folders under ``--fast``, without importing them."""
    return True if needs.fast and _folder(collection_path) in SLOW else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests under ``--fast``. In a process of pytest-xdist, begin with the longest parts.

    The last parts should be short: the run ends with the last process, and the others wait for it.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _rank(item.path))
    if needs.fast:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process of pytest-xdist whole files, and the files of a group to the same one.

    This is what ``--dist loadgroup`` is for, but with pytest 9.2 pytest-xdist 3.8 does not see the groups. The files keep the
    order of ``pytest_collection_modifyitems``.
    """
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # orders by the number of tests, which says little about the time

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return _group(config.rootpath / file) or file

    return Scheduling(config, log)


def _rank(path: Path) -> int:
    """Return a number that orders a file: first ``ALONE`` and the groups, one after the other, then the other slow folders."""
    first = sorted(set(GROUPS.values()))
    group = _group(path)
    if path == ALONE or group:
        return first.index(group) + 1 if group else 0
    return len(first) + 1 + (_folder(path) not in SLOW)


def _group(path: Path) -> str:
    """Return the group of a file; empty if the file has no group."""
    return "" if path == ALONE else GROUPS.get(_folder(path), "")


def _folder(path: Path) -> str:
    """Return the name of the folder of ``tests`` that contains the path; empty for another path."""
    tests = ROOT / "tests"
    return path.relative_to(tests).parts[0] if tests in path.parents else ""


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> None:
    """Remove the settings in the environment of the test run; a test sets the ones that it needs."""
    for name in list(os.environ):
        if name.startswith("NAR_") or name in {"NIX_CACHE_URL", "PORT", "HTTP_ADDR", "DOMAIN"}:
            del os.environ[name]


@pytest.fixture(autouse=True, scope="session")
def _programs_start_with_default_signals() -> None:
    """Let programs get signals that this test run ignores, because it runs under nohup or in the background of a script.

    A program inherits an ignored signal, but not a handler.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)


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
