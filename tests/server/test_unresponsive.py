"""A store that does not answer: cached files stay fast. A store that answers slowly: no request is refused."""

from pathlib import Path

import pytest

from tests.server.unresponsive import CACHED_FILE, cold_requests, measure


@pytest.mark.parametrize("silence", ["narinfo head", "NAR body"])
def test_cached_files_stay_fast_while_the_store_does_not_answer(tmp_path: Path, silence: str) -> None:
    """``python -m tests.server.attack --only unresponsive-store`` measures all kinds of silence, and for longer.

    Until a wait counts, that is for two seconds, all threads may wait for the store, and one request waits for a thread.
    """
    result = measure(tmp_path, silence, seconds=4)
    for path, times in result.seconds.items():
        assert len(times) >= 20
        assert sorted(times)[-2] < 2
        assert result.percentile(path, 0.9) < 0.25
    assert set(result.seconds) == {CACHED_FILE, "/healthz"}
    assert result.statuses[503] >= 30  # of 70 clients, at most 32 wait
    assert result.statuses[200] == 0


def test_64_requests_to_a_slow_store_all_succeed(tmp_path: Path) -> None:
    assert cold_requests(tmp_path, 64, delay=1.0) == {200: 64}
