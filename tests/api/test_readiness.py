"""The readiness check answers from the last result, and refreshes it in the background."""

import threading
from collections.abc import Callable

import pytest

from api.handlers.readiness import REFRESH_SECONDS, STALE_SECONDS, Readiness
from narcore.errors import StoreError
from tests.clock import Clock
from tests.server.serving import eventually


class Store:
    """A store that answers or fails, and can be made to hang."""

    def __init__(self) -> None:
        self.is_up = True
        self.calls = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def check(self) -> None:
        self.calls += 1
        assert self.may_answer.wait(10)
        if not self.is_up:
            raise StoreError("down")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def is_ready(store: Store, clock: Clock) -> Callable[[], bool]:
    return Readiness(store.check, clock).is_ready


@pytest.mark.parametrize("is_up", [True, False])
def test_the_first_request_waits_for_the_check(store: Store, is_ready: Callable[[], bool], is_up: bool) -> None:
    store.is_up = is_up
    assert is_ready() is is_up


def test_requests_within_the_refresh_time_cause_one_check(
    store: Store, clock: Clock, is_ready: Callable[[], bool]
) -> None:
    assert is_ready()
    store.is_up = False
    clock.now += REFRESH_SECONDS - 0.1
    assert all(is_ready() for _ in range(20))
    assert store.calls == 1


def test_later_requests_get_the_previous_result_while_a_store_hangs(
    store: Store, clock: Clock, is_ready: Callable[[], bool]
) -> None:
    assert is_ready()
    store.may_answer.clear()
    store.is_up = False
    clock.now += REFRESH_SECONDS
    assert all(is_ready() for _ in range(20))
    store.may_answer.set()
    eventually(lambda: not is_ready())
    assert store.calls == 2


def test_a_result_that_is_too_old_is_not_used(store: Store, clock: Clock, is_ready: Callable[[], bool]) -> None:
    assert is_ready()
    store.is_up = False
    clock.now += STALE_SECONDS
    assert not is_ready()
