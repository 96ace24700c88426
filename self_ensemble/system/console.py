"""What a long run says while it runs, on stderr; and how a text is said on one line."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Timer
from typing import Any

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


class Progress(ABC):
    """How far something is.

    Args:
        begin: how much was done before.
    """

    def __init__(self, begin: int):
        self.done = self.begin = begin
        self.begun = time.monotonic()

    def __call__(self, count: int) -> None:
        """So much more is done."""
        self.reach(self.done + count)

    def reach(self, done: int, tokens: int | None = None) -> None:
        """So much is done in all, with so many tokens since the beginning."""
        self.done = max(self.done, done)
        rate = 0 if tokens is None else tokens / max(time.monotonic() - self.begun, 1e-3)
        self._show("" if tokens is None else f"{tokens:,} tokens, {rate:,.0f} tokens/s")

    @abstractmethod
    def _show(self, tokens: str) -> None: ...


class _Bar(Progress):
    def __init__(self, begin: int, bar: Any):
        super().__init__(begin)
        self.bar = bar

    def _show(self, tokens: str) -> None:
        self.bar.set_postfix_str(tokens, refresh=False)
        self.bar.update(self.done - self.bar.n)


class _Lines(Progress):
    def __init__(self, begin: int, total: int, what: str, unit: str):
        super().__init__(begin)
        self.total, self.what, self.unit = total, what, unit
        self.due = self.begun + QUIET_SECONDS

    def _show(self, tokens: str) -> None:
        now = time.monotonic()
        is_nothing = self.done == self.begin and not tokens
        if now < self.due or is_nothing or self.done >= self.total:
            return
        self.due = now + PLAIN_SECONDS
        rate = (self.done - self.begin) / (now - self.begun)
        parts = [f"{self.what}: {self.done} of {self.total} {self.unit}"]
        if rate:
            parts.append(f"{rate:.1f} {self.unit}/s")
        if tokens:
            parts.append(tokens)
        if rate:
            parts.append(f"{(self.total - self.done) / rate:.0f} s left")
        say(", ".join(parts))


@contextmanager
def progress(total: int, what: str, unit: str, *, begin: int = 0) -> Iterator[Progress]:
    """A bar on a terminal, a plain line now and then elsewhere; nothing on what is quick.

    begin: how many of `total` were done before.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        settings = {"unit": f" {unit}", "delay": QUIET_SECONDS, "smoothing": 0.1}
        with tqdm(total=total, initial=begin, desc=what, **settings) as bar:
            yield _Bar(begin, bar)
        return
    yield _Lines(begin, total, what, unit)
