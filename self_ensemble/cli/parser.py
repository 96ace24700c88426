"""How a script reads its command line, runs, and tells of mistakes.

A script does

    if __name__ == "__main__":
        run(main, parse_args())

where `parse_args` fills a `Parser` and returns a configuration, and `main` takes that. Nothing
heavy is imported here, so that --help answers at once; `main` imports what it needs.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from self_ensemble.cli.remedies import told
from self_ensemble.system.errors import UserError
from self_ensemble.system.interrupts import ctrl_c_ends_soon, leave

Config = TypeVar("Config")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose flags may be written with `_` or `-` and whose errors are one line.

    The docstring of a script serves as its description, lines as they are.
    """

    def __init__(self, **settings: Any):
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        # A flag cut short could come to mean another one as flags are added.
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        given = list(sys.argv[1:] if args is None else args)
        parsed, unknown = self.parse_known_args(given, namespace)
        if unknown:
            # In the spelling in which it was given. Some Pythons leave the `--` in.
            odd = next((arg for arg in unknown if arg != "--"), "--")
            typed = next((arg for arg in given if _underscored(arg) == odd), odd)
            self.error(f"{'unknown flag' if typed.startswith('-') else 'unexpected'} {typed!r}")
        return parsed

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = _in_one_spelling(list(sys.argv[1:] if args is None else args))
        for arg in given[: given.index("--")] if "--" in given else given:
            flag, _, value = arg.partition("=")
            if value == "--" and re.fullmatch(r"--\w+", flag):  # which some Pythons leave out
                self.error(f"{flag}: '--' alone is no value that can be given")
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {_one_line(message.removeprefix('argument '))} (see --help)\n")


def _in_one_spelling(args: Sequence[str]) -> list[str]:
    """Flags with underscores, and a negative number tied to its flag: `-1,2` is no flag of ours."""
    spelled: list[str] = []
    for position, arg in enumerate(args):
        if arg == "--":
            return spelled + list(args[position:])
        if re.match(r"-[0-9.]", arg) and spelled and re.fullmatch(r"--\w+", spelled[-1]):
            spelled[-1] += f"={arg}"
        else:
            spelled.append(_underscored(arg))
    return spelled


def _underscored(arg: str) -> str:
    flag, equals, value = arg.partition("=")
    if re.fullmatch(r"--[A-Za-z][\w-]*", flag):
        flag = "--" + flag[2:].replace("-", "_")
    return flag + equals + value


def run(main: Callable[[Config], object], config: Config) -> None:
    """`main(config)`, where a mistake of the user's becomes one line and exit status 2.

    Ctrl-C becomes one line and status 130 within two seconds, and a reader of the output that went
    away (`| head`) silence and status 141, as shells have it. Anything else is a fault of the
    program's and keeps its traceback.
    """
    try:
        with ctrl_c_ends_soon():
            main(config)
            print(end="", flush=True)
    except UserError as error:
        print(f"error: {_one_line(told(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        leave()
    except BrokenPipeError:
        # What is still buffered would fail again when Python closes its streams.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        sys.exit(141)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def set_up_logging(verbose: bool) -> None:
    """Our warnings as plain lines; the libraries' bars and remarks only with --verbose."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    if not verbose:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
