"""Identities: what a result depends on, as JSON types, and how two of them differ.

Where a release adds an entry, it says here what held before there was one. An identity without the
entry means that value, and an entry that has it is not written: so a run with default settings has
the identity that it had in earlier releases, and goes on with their files and journals.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

# Entry → what its absence means. An entry within another one has a dot: "method.tau".
ABSENT_MEANS: dict[str, Any] = {
    "task": "generate",
    "stop": None,
    "sampling": None,
    "extract": "line",
    "choice_norm": "sum",
    "fewer": "error",
    "method.weights_by": None,
}
# How an error says a null.
NULLS = {
    "stop": "the first line",
    "sampling": "the likeliest token",
    "method.weights_by": "nothing",
}

# How much of a value an error message shows.
SHOWN_CHARACTERS = 80

_MISSING = object()


def as_written(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity without the entries that mean what their absence means."""
    return _as_written(identity, "")


def _as_written(entries: Mapping[str, Any], within: str) -> dict[str, Any]:
    written = {}
    for name, value in entries.items():
        path = within + name
        if value == ABSENT_MEANS.get(path, _MISSING):
            continue
        written[name] = _as_written(value, f"{path}.") if isinstance(value, dict) else value
    return written


def identity_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """One phrase for each entry whose values differ, entries that only one side has included."""
    return list(_differences(there, here, ""))


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], within: str) -> Iterator[str]:
    for name in sorted(there.keys() | here.keys()):
        path = within + name
        meant = ABSENT_MEANS.get(path, _MISSING)
        old, new = there.get(name, meant), here.get(name, meant)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}.")
        elif _shown(old, path) != _shown(new, path):
            shown = _shorten_pair(_shown(old, path), _shown(new, path))
            yield f"{path} is {shown[0]} there and {shown[1]} here"


def _shown(value: Any, path: str) -> str:
    if value is _MISSING:
        return "absent"
    return NULLS[path] if value is None and path in NULLS else canonical_json(value)


def canonical_json(value: Any) -> str:
    """The same text for the same value, in whatever order its keys are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _shorten_pair(old: str, new: str) -> tuple[str, str]:
    """Both texts cut to what can be read in a line, around the place where they part."""
    pairs = enumerate(zip(old, new, strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    is_long = max(len(old), len(new)) > SHOWN_CHARACTERS
    start = max(0, shared - SHOWN_CHARACTERS // 4) if is_long else 0

    def cut(text: str) -> str:
        end = start + SHOWN_CHARACTERS
        return ("..." if start else "") + text[start:end] + ("..." if len(text) > end else "")

    return cut(old), cut(new)
