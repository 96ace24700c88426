"""Inspections on a terminal: stage by stage, with stops where they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch, and --help names the commands
    from self_ensemble.diagnostics.inspection import Inspection

COMMANDS = "n(ext), c(ontinue), p NAME, q(uit)"


class Quit(Exception):
    """The user has seen enough."""


class Stops:
    """Asks before each stage what to do, until told to continue.

    The end of the input quits. Where it is no terminal its lines are repeated, so that the output
    reads like a session.
    """

    def __init__(self, interactive: bool):
        self.asking = interactive

    def before(self, stage: str, inspection: Inspection) -> None:
        """Returns when the stage is to be shown. Raises Quit."""
        while self.asking:
            try:
                command, _, name = input(f"[{stage}] > ").strip().partition(" ")
            except EOFError:
                print()
                raise Quit from None
            if not sys.stdin.isatty():
                print(f"{command} {name}".strip())
            if command in ("", "n", "next"):
                return
            if command in ("c", "continue"):
                self.asking = False
            elif command in ("q", "quit"):
                raise Quit
            elif command in ("p", "print"):
                print_lines(inspection.show(name.strip()))
            else:
                print_lines([f"{command!r} is none of {COMMANDS}"])


def print_lines(lines: Sequence[str]) -> None:
    # At once: a Ctrl-C ends the program with what is still in a buffer.
    print("\n".join(f"   {line}".rstrip() for line in lines), flush=True)


def show_questions(
    inspections: Iterable[Inspection], count: int, *, interactive: bool
) -> tuple[list[Inspection], bool]:
    """Show every question, one after the other.

    Args:
        inspections: of the questions, made as they are asked for.
        count: how many there are.
        interactive: stop before each stage.

    Returns:
        Those that were shown to the end, and whether that is all of them.
    """
    shown: list[Inspection] = []
    stops = Stops(interactive)
    try:
        for number, inspection in enumerate(inspections, start=1):
            show_question(inspection, f"question {number} of {count}", stops)
            shown.append(inspection)
    except Quit:
        return shown, False
    return shown, True


def show_question(inspection: Inspection, title: str, stops: Stops) -> None:
    """All there is to see of a question. Raises Quit."""
    print(f"{title}: {inspection.title}")
    for stage, show in inspection.stages():
        stops.before(stage, inspection)
        print(f"\n[{stage}]")
        print_lines(show())
    print()
