"""Ctrl-C ends a program within two seconds and says how to go on.

Also in the middle of a long call into a library, as long as that lets other threads of Python run,
as torch's, pandas' and spaCy's calls do.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

# What Python needs Ctrl-C for, it gets: files are closed, temporary ones removed. One long call
# into a library would make it wait, so after this many seconds the program ends all the same.
# Nothing is lost then either: what is on the disk is as after any other kill.
GRACE_SECONDS = 1.2
STATUS = 128 + signal.SIGINT

_advice: Callable[[], str] | None = None


def advise(advice: Callable[[], str] | None) -> None:
    """From now on Ctrl-C says this."""
    global _advice
    _advice = advice


def leave() -> NoReturn:
    """Says how to go on and ends the process, without what libraries like to do at their exit."""
    text = "interrupted" if _advice is None else f"interrupted: {_advice()}"
    print(text, file=sys.stderr, flush=True)
    os._exit(STATUS)


@contextmanager
def ctrl_c_ends_soon() -> Iterator[None]:
    """Inside, a Ctrl-C that is not answered with KeyboardInterrupt in time ends the process.

    Python itself looks for signals between two steps of its own only; the number of the signal is
    written into a pipe at once, where a thread waits for it.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    over = threading.Event()

    def wait() -> None:
        while (number := os.read(reading, 1)) and number[0] != signal.SIGINT:
            pass
        if number and not over.wait(GRACE_SECONDS):
            leave()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the thread's reading
        thread.join()
        os.close(reading)
