"""Which versions of Python and of packages the toolkit was tested with.

A checkout has the pins of requirements.txt beside the package; an installed package has the ranges
of its own metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

from self_ensemble.system.bundled import PACKAGE

DISTRIBUTION = "self-ensemble"
# From these versions, where they are older than the pins, up to the pins.
OLDEST_TESTED = {"torch": "2.11.0", "transformers": "5.17.0"}
OLDEST_PYTHON, NEWEST_PYTHON = "3.11", "3.12"


@dataclass(frozen=True)
class VersionRange:
    """A package, and the versions of it that are known to work.

    newest: None where nothing is said of it. extra: of the distribution, that brings the package.
    """

    package: str
    oldest: str
    newest: str | None = None
    extra: str | None = None

    def has(self, version: str) -> bool:
        """What is tested of a version counts for its corrections too."""
        above = self.newest is not None and series(version) > series(self.newest)
        return series(version) >= series(self.oldest) and not above

    def __str__(self) -> str:
        if self.newest is None:
            return f"{self.oldest} or newer"
        return self.newest if self.oldest == self.newest else f"{self.oldest} to {self.newest}"

    @property
    def install(self) -> str:
        """The command that brings such a version."""
        if self.newest is None:
            return f"pip install '{self.package}>={self.oldest}'"
        return f"pip install {self.package}=={self.newest}"


def version_ranges() -> list[VersionRange]:
    """Of every package that the toolkit asks for."""
    pins = PACKAGE.parent / "requirements.txt"
    if is_checkout(PACKAGE.parent):
        return read_pins(pins.read_text(encoding="utf-8"))
    return read_ranges(requires(DISTRIBUTION) or ())


def is_checkout(folder: Path) -> bool:
    """Whether the package lies in the project's own folder, not among installed ones."""
    return all((folder / name).is_file() for name in ("pyproject.toml", "requirements.txt"))


def read_pins(text: str) -> list[VersionRange]:
    """Of the lines of requirements.txt."""
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", text, re.M)
    return [VersionRange(name, OLDEST_TESTED.get(name, pin), pin) for name, pin in pins]


def read_ranges(requirements: Iterable[str]) -> list[VersionRange]:
    """Of the requirements in a distribution's metadata, such as ``spacy>=3.8; extra == "lemmas"``.

    The distribution's own extras, and what an extra repeats, are left out.
    """
    found: dict[str, VersionRange] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+)\s*(?:\[[^]]*])?\s*>=\s*([\w.]+)", requirement)
        if match:
            extra = re.search(r"extra == ['\"]([\w.-]+)['\"]", requirement)
            versions = VersionRange(match[1], match[2], extra=extra[1] if extra else None)
            found.setdefault(versions.package, versions)
    return list(found.values())


def series(text: str) -> tuple[int, ...]:
    """`2.13.1+cpu` → (2, 13)."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
