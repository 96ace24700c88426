"""What users add by name: a name, and the thing that is registered under it.

>>> votes: Registry[Callable] = Registry("unknown vote {name!r}: there are {names}")
>>> @votes.register("longest")
... def longest(answers): ...
>>> votes.get("longest") is longest
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from self_ensemble.system.errors import UserError

Entry = TypeVar("Entry")
Added = TypeVar("Added")


class Registry(Generic[Entry]):
    """Entries of one kind, in the order in which they were registered.

    Args:
        unknown: the sentence about a name that is not there, with ``{name}`` and ``{names}``, the
            names that there are, to be filled in by `str.format`.
    """

    def __init__(self, unknown: str) -> None:
        self._unknown = unknown
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Added], Added]:
        """A decorator that registers what it decorates, and returns it unchanged."""

        def decorate(entry: Added) -> Added:
            self.add(name, entry)  # type: ignore[arg-type]  # a decorator cannot bound Added by Entry
            return entry

        return decorate

    def add(self, name: str, entry: Entry) -> None:
        """Register an entry.

        Raises:
            ValueError: the name is taken: one of the two would be lost in silence.
        """
        if name in self._entries:
            raise ValueError(f"{name!r} is registered already, as {self._entries[name]!r}")
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Take an entry out again, such as one that a notebook's cell is about to register anew.

        Raises:
            UserError: there is no such entry.
        """
        self.get(name)
        del self._entries[name]

    def get(self, name: str) -> Entry:
        """The entry under this name.

        Raises:
            UserError: there is none; the sentence lists the names that there are.
        """
        if name not in self._entries:
            raise UserError(self._unknown.format(name=name, names=", ".join(self._entries)))
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
