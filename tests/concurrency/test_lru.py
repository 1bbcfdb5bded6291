"""What an LRU memory keeps, and for how long."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from narcore.concurrency.lru import LruMemory


class TestLruMemory:
    @given(st.integers(1, 12), st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 6))))
    def test_as_a_model_does(self, limit: int, steps: list[tuple[bool, int, int]]) -> None:
        """What was used last stays, as much as there is room for, and one at least."""
        memory: LruMemory[int, int] = LruMemory(limit)
        model: OrderedDict[int, int] = OrderedDict()
        for puts, key, weight in steps:
            if puts:
                memory.put(key, weight, weight=weight)
                model.pop(key, None)
                model[key] = weight
                while sum(model.values()) > limit and len(model) > 1:
                    model.popitem(last=False)
            else:
                assert memory.get(key) == model.get(key)
                if key in model:
                    model.move_to_end(key)
        assert {key: memory.get(key) for key in range(7)} == {key: model.get(key) for key in range(7)}

    def test_what_is_old_is_forgotten(self) -> None:
        now = 0.0
        memory: LruMemory[str, str] = LruMemory(3, clock=lambda: now)
        memory.put("short", "a", seconds=5)
        memory.put("long", "b")
        now = 4.9
        assert memory.get("short") == "a"
        now = 5.0
        assert (memory.get("short"), memory.get("long")) == (None, "b")
        memory.put("x", "c", weight=2)  # there is room for it: the old one weighs nothing any more
        assert (memory.get("long"), memory.get("x")) == ("b", "c")
        memory.discard("x")
        assert memory.get("x") is None
