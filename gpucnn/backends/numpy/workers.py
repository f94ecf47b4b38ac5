"""The threads that members of a team work on: as many as the largest team wants, kept for the next one.

They are daemons: a training that outlives the main thread still has them, and when nothing else is left they do not
keep the process. Each waits for work at a queue of its own, and the one who gave it at a lock that is opened when it is
done: neither can be left half done where a signal interrupts the main thread.
"""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from gpucnn.core import forks
from gpucnn.errors import ConfigurationError


class Work:
    """A function that a worker calls."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()
        self.given = False  # to a worker

    def do(self) -> None:
        """Call the function; keep what it returns or raises."""
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def end(self) -> None:
        """Let the one who waits go on."""
        self._done.release()

    def result(self) -> Any:
        """Wait for what the function returns, and return it, or raise its error."""
        self._done.acquire()
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            self._error = None  # it holds this frame


class Worker(threading.Thread):
    """A thread that does one piece of work after another."""

    def __init__(self, number: int) -> None:
        super().__init__(name=f"gpucnn-{number}", daemon=True)
        self.busy = False
        self.queue: SimpleQueue[Work | None] = SimpleQueue()  # None ends it

    def run(self) -> None:
        """Work until there is no more."""
        while (work := self.queue.get()) is not None:
            work.do()
            self.busy = False
            work.end()
            del work  # it holds the results


class Workers:
    """All workers of the process."""

    def __init__(self) -> None:
        self._lock = forks.lock()
        self._all: list[Worker] = []

    def ready(self, count: int) -> int:
        """Start threads until there are so many; return how many there are: fewer where the system starts no more."""
        with self._lock:
            while len(self._all) < count and self._start():
                pass
            return len(self._all)

    def give(self, works: Sequence[Work]) -> None:
        """Let a worker begin with each of these; one that is stuck in what was called off is not waited for.

        Raises:
            ConfigurationError: there are not enough, and the system starts no more; nothing has begun.
        """
        with self._lock:
            free = [worker for worker in self._all if not worker.busy]
            while len(free) < len(works):
                if not self._start():
                    raise ConfigurationError(
                        f"a batch was cut for {len(works) + 1} threads, and the system starts no more than "
                        f"{len(free) + 1}; set GPUCNN_NUM_THREADS, or call gpucnn.set_num_threads, to no more than that"
                    )
                free.append(self._all[-1])
            for worker, work in zip(free, works, strict=False):
                worker.busy = True
                worker.queue.put(work)
                work.given = True

    def keep(self, count: int) -> None:
        """End those beyond so many, as far as they are not at work."""
        with self._lock:
            while len(self._all) > count and not self._all[-1].busy:
                self._all.pop().queue.put(None)

    def forget(self) -> None:
        """Begin with none, as a forked child does, which has only the thread that forked."""
        self._all = []

    def _start(self) -> bool:
        """Start one more; return whether the system did."""
        worker = Worker(len(self._all) + 1)
        try:
            worker.start()
        except (RuntimeError, MemoryError):
            return False
        self._all.append(worker)
        return True
