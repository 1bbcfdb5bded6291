"""Slow clients and signals under load do not stop the server. ``python -m tests.server.attack`` is longer.

``test_unresponsive.py`` tests unresponsive and slow stores.
"""

from collections.abc import Iterable

import pytest

from tests import needs, proofs
from tests.bench.report import Row
from tests.server.attack.crowd import SHARE, crowd
from tests.server.attack.site import Site
from tests.server.attack.slowclients import ATTACKS, FORMS, LIMIT_MS, attack
from tests.server.attack.stopping import sighup, sigterm
from tests.server.attack.stores import merging

# Other tests run at the same time and take most of the processor, so a measurement is repeated, and the goals of a short run are
# lower. They still show whether a server holds: a server that does not hold gives no response at all.
WINDOWS = 3
BUSY_LIMIT_MS = 1500.0
BUSY_SHARE = 0.05

pytestmark = [pytest.mark.proof, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("attacks"))


@pytest.fixture
def seconds() -> float:
    return proofs.length(3.0, 30.0)


@pytest.fixture
def limit_ms() -> float:
    return proofs.length(BUSY_LIMIT_MS, LIMIT_MS)


def check(rows: Iterable[Row]) -> None:
    """Fail unless every goal is met."""
    found = list(rows)
    assert any(row.met is not None for row in found)
    assert all(row.met is not False for row in found), "\n".join(map(str, found))


@pytest.mark.parametrize("name", ATTACKS)
def test_other_clients_are_answered_during_an_attack(site: Site, seconds: float, limit_ms: float, name: str) -> None:
    check(attack(site, [name], FORMS["http/1.1"], seconds, windows=WINDOWS, limit_ms=limit_ms))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "http/1.1"])
def test_other_clients_are_answered_during_all_attacks_at_once(
    site: Site, seconds: float, limit_ms: float, form: str
) -> None:
    if FORMS[form].nginx:
        needs.program("nginx")
    check(attack(site, list(ATTACKS), FORMS[form], seconds, windows=WINDOWS, limit_ms=limit_ms))


@pytest.mark.parametrize("cached_pages", [True, False], ids=["page-cache", "disk"])
def test_slow_readers_do_not_slow_down_a_download(site: Site, seconds: float, cached_pages: bool) -> None:
    readers, share = proofs.length((1000, BUSY_SHARE), (10_000, SHARE))
    check(crowd(site, seconds, readers=readers, cached_pages=cached_pages, share=share))


def test_concurrent_requests_for_one_path_share_one_request_to_the_store(site: Site, seconds: float) -> None:
    check(merging(site, seconds))


def test_sigterm_resets_no_connection(site: Site, seconds: float) -> None:
    check(sigterm(site, seconds, rounds=proofs.length(2, 20)))


def test_sighup_resets_no_connection(site: Site, seconds: float) -> None:
    check(sighup(site, seconds, rounds=proofs.length(2, 20)))
