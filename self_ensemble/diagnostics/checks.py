"""What a check of the environment finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True)
class Check:
    """One line of the table. todo: what to do where it is not ok. figures: for --json."""

    name: str
    status: str
    found: str
    todo: str = ""
    figures: dict[str, float | int | str] = field(default_factory=dict)


def failed(checks: Iterable[Check]) -> list[str]:
    """The names of those that failed."""
    return [check.name for check in checks if check.status == FAILED]


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
