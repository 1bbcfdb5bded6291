"""The LRU cache: eviction and expiry."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from narcore.concurrency.lru import LruMemory


class TestLruMemory:
    @given(st.integers(1, 12), st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 6))))
    def test_the_least_recently_used_entry_is_evicted(self, limit: int, steps: list[tuple[bool, int, int]]) -> None:
        """Compares with a model: the most recently used entries stay within the limit, and always at least one entry."""
        cache: LruMemory[int, int] = LruMemory(limit)
        model: OrderedDict[int, int] = OrderedDict()
        for puts, key, weight in steps:
            if puts:
                cache.put(key, weight, weight=weight)
                model.pop(key, None)
                model[key] = weight
                while sum(model.values()) > limit and len(model) > 1:
                    model.popitem(last=False)
            else:
                assert cache.get(key) == model.get(key)
                if key in model:
                    model.move_to_end(key)
        assert {key: cache.get(key) for key in range(7)} == {key: model.get(key) for key in range(7)}

    def test_an_entry_expires(self) -> None:
        now = 0.0
        cache: LruMemory[str, str] = LruMemory(3, clock=lambda: now)
        cache.put("short", "a", seconds=5)
        cache.put("long", "b")
        now = 4.9
        assert cache.get("short") == "a"
        now = 5.0
        assert (cache.get("short"), cache.get("long")) == (None, "b")
        cache.put("x", "c", weight=2)  # fits, because the expired entry does not count any more
        assert (cache.get("long"), cache.get("x")) == ("b", "c")
        cache.discard("x")
        assert cache.get("x") is None
