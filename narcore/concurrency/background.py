"""Background threads: a queue of work, and a single call with a result."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundThread(threading.Thread):
    """A daemon thread of this library: it does not keep the process alive. Client requests never run in it."""

    def __init__(self, target: Callable[[], object], *, name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


class WorkQueue(Generic[T]):
    """Passes items to ``work``, one at a time, in a background thread that ends when the queue is empty. Thread-safe.

    ``work`` must not raise. ``name`` is the name of the thread.
    """

    def __init__(self, name: str, work: Callable[[T], None]) -> None:
        self._name = name
        self._work = work
        self._lock = threading.Lock()
        self._waiting: deque[T] = deque()
        self._is_running = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: T) -> None:
        """Add an item. Returns immediately."""
        with self._lock:
            self._waiting.append(item)
            if not self._is_running:
                self._is_running = True
                BackgroundThread(self._run, name=self._name).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_running = False
                    return
                item = self._waiting.popleft()
            self._work(item)


def call_in_background(call: Callable[[], T]) -> Future[T]:
    """Run ``call`` in a new BackgroundThread; the Future gets its result or error.

    Raises RuntimeError if the system can't start another thread.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  raised again in the thread that waits for the result
            future.set_exception(error)
        else:
            future.set_result(result)

    BackgroundThread(run, name="background-call").start()
    return future
