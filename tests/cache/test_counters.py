"""Counters shared by all processes."""

import json
from pathlib import Path

import pytest

from narcore.cache.counters import NAMES, Counters
from narcore.cache.layout import Layout


class TestCounters:
    def test_counts_of_several_processes_add_up(self, tmp_path: Path) -> None:
        one, two = Counters(Layout(tmp_path)), Counters(Layout(tmp_path))
        for _ in range(5):
            one.add("hit")
            two.add("hit", 2)
        two.add("evict")
        one.flush()
        two.flush()
        assert Counters(Layout(tmp_path)).read() == dict.fromkeys(NAMES, 0) | {"hit": 15, "evict": 1}

    @pytest.mark.parametrize("invalid", [b"", b"[1]", b"\xff\xfe", b'{"hit":null}', b'{"hit":"x"}'])
    def test_invalid_file_is_replaced(self, invalid: bytes, tmp_path: Path) -> None:
        counters = Counters(Layout(tmp_path))
        (tmp_path / ".counters").write_bytes(invalid)
        counters.add("fill")
        counters.flush()
        assert counters.read()["fill"] == 1

    def test_counts_are_kept_until_they_can_be_written(self, tmp_path: Path) -> None:
        counters = Counters(Layout(tmp_path / "later"))
        counters.add("hit")
        counters.flush()
        (tmp_path / "later").mkdir()
        counters.flush()
        assert json.loads((tmp_path / "later" / ".counters").read_text())["hit"] == 1
