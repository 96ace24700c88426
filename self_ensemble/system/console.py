"""What a long run says while it runs, on stderr; and how a text is said on one line."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Timer

# What is done sooner is not told of; then a line as often as this, off a terminal.
QUIET_SECONDS, PLAIN_SECONDS = 2, 10


def visible(text: str) -> str:
    """On one line: what cannot be printed is escaped, and so is a backslash, or a newline would
    look like the two characters of its escape."""
    return "".join(c if c.isprintable() and c != "\\" else repr(c)[1:-1] for c in text)


def quoted(text: str) -> str:
    """A token's text: in quotes, for a leading space matters."""
    return f"'{visible(text)}'"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


say_once = cache(say)


@contextmanager
def say_if_slow(text: str, *, once: bool = False) -> Iterator[None]:
    """One line if what is done inside takes longer than is waited for in silence.

    once: not if this line has been said before.
    """
    timer = Timer(QUIET_SECONDS, say_once if once else say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress(
    total: int, what: str, unit: str, *, begin: int = 0
) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, a plain line now and then elsewhere; nothing on what is quick.

    begin: how many of `total` were done before.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        settings = {"unit": f" {unit}", "delay": QUIET_SECONDS, "smoothing": 0.1}
        with tqdm(total=total, initial=begin, desc=what, **settings) as bar:
            yield bar.update
        return
    done, begun = begin, time.monotonic()
    due = begun + QUIET_SECONDS

    def advance(count: int) -> None:
        nonlocal done, due
        done += count
        now = time.monotonic()
        if now >= due and done < total:
            due = now + PLAIN_SECONDS
            rate = (done - begin) / (now - begun)
            say(
                f"{what}: {done} of {total} {unit}, {rate:.1f} {unit}/s, "
                f"{(total - done) / rate:.0f} s left"
            )

    yield advance
