"""Which fills count as slow."""

import pytest

from narcore.cache.pace import SLOW_RATE, SLOW_SECONDS, Pace


@pytest.mark.parametrize("step", [0.5, 1.0, 7.0, SLOW_SECONDS])
@pytest.mark.parametrize(("rate", "slow"), [(0, True), (1, True), (SLOW_RATE - 100, True), (SLOW_RATE, False)])
@pytest.mark.parametrize("before", [0, 10 << 30])
def test_fill_is_slow_if_it_receives_less_than_the_rate_for_a_minute(
    step: float, rate: int, slow: bool, before: int
) -> None:
    """What arrived ``before`` that minute does not count."""
    now = 1000.0
    pace = Pace(lambda: now)
    now += SLOW_SECONDS
    assert pace.is_slow(before) == (before == 0)
    found = []
    for number in range(1, round(2 * SLOW_SECONDS / step) + 1):
        now += step
        found.append(pace.is_slow(before + round(number * step * rate)))
    assert any(found) == slow
    assert sum(found) <= 2
