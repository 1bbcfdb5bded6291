"""Work that nobody waits for, one piece after the other."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Hands what is put to ``work``, in a thread that ends when nothing is left. ``work`` raises nothing. Thread-safe."""

    def __init__(self, name: str, work: Callable[[T], None]) -> None:
        self._name = name
        self._work = work
        self._lock = threading.Lock()
        self._waiting: deque[T] = deque()
        self._is_running = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, piece: T) -> None:
        """Returns at once."""
        with self._lock:
            self._waiting.append(piece)
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_running = False
                    return
                piece = self._waiting.popleft()
            self._work(piece)
