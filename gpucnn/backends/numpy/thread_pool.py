"""The threads that compute shards: as many as the largest team needs, reused by the next one.

They are daemons: a training run that outlives the main thread still has them, and when nothing else is left they do not
keep the process alive. Each waits for a task at its own queue, and the submitter waits at a lock that is released when
the task is done: neither can be left half done where a signal interrupts the main thread.
"""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from gpucnn.core import forks
from gpucnn.errors import ConfigurationError


class Task:
    """A function that a pool thread calls."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()
        self.submitted = False

    def run(self) -> None:
        """Call the function; keep what it returns or raises."""
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Release the submitter."""
        self._done.release()

    def result(self) -> Any:
        """Wait for the function; return its result or raise its error."""
        self._done.acquire()
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            self._error = None  # it references this frame


class PoolThread(threading.Thread):
    """A thread that runs one task after another."""

    def __init__(self, number: int) -> None:
        super().__init__(name=f"gpucnn-{number}", daemon=True)
        self.busy = False
        self.queue: SimpleQueue[Task | None] = SimpleQueue()  # None ends the thread

    def run(self) -> None:
        """Run tasks until None arrives."""
        while (task := self.queue.get()) is not None:
            task.run()
            self.busy = False
            task.finish()
            del task  # it references the results


class ThreadPool:
    """All threads of the CPU engine in this process."""

    def __init__(self) -> None:
        self._lock = forks.lock()
        self._threads: list[PoolThread] = []

    def grow(self, count: int) -> int:
        """Start threads until there are `count`; return their number, less where the system starts no more."""
        with self._lock:
            while len(self._threads) < count and self._start():
                pass
            return len(self._threads)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand each task to a free thread; one that still runs an aborted task is not waited for.

        Raises:
            ConfigurationError: there are too few threads, and the system starts no more; no task was started.
        """
        with self._lock:
            free = [thread for thread in self._threads if not thread.busy]
            while len(free) < len(tasks):
                if not self._start():
                    raise ConfigurationError(
                        f"a batch was split for {len(tasks) + 1} threads, but the system starts no more than "
                        f"{len(free) + 1}; set GPUCNN_NUM_THREADS, or call gpucnn.set_num_threads, to at most that"
                    )
                free.append(self._threads[-1])
            for thread, task in zip(free, tasks, strict=False):
                thread.busy = True
                thread.queue.put(task)
                task.submitted = True

    def shrink(self, count: int) -> None:
        """End all threads but `count`, except those that are busy."""
        with self._lock:
            while len(self._threads) > count and not self._threads[-1].busy:
                self._threads.pop().queue.put(None)

    def forget(self) -> None:
        """Start over without threads, as in a forked child, which has only the thread that forked."""
        self._threads = []

    def _start(self) -> bool:
        """Start one more thread; return whether the system did."""
        thread = PoolThread(len(self._threads) + 1)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            return False
        self._threads.append(thread)
        return True
