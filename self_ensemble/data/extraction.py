"""What of a generation is its prediction.

    parse_extraction("after:</think>")("<think>Peru ...</think>\\n\\nLima")      # "Lima"

Nothing here imports torch: a score can be taken again from a file of generations.
"""

import re
from dataclasses import dataclass
from typing import Any

from self_ensemble.data.answers import first_line
from self_ensemble.data.numbers import last_number
from self_ensemble.system.errors import UserError

WITHOUT_ARGUMENT = ("line", "all", "last_number")
WITH_ARGUMENT = ("after", "regex")
SPELLINGS = (*WITHOUT_ARGUMENT, "after:TEXT", "regex:PATTERN")


@dataclass(frozen=True)
class Extraction:
    """A function of a generation; made by `parse_extraction`, whose text `str` gives back.

    kind: ``line``: the first line that holds anything, without space around it; ``all``: all of it,
        without space around it; ``after``: what follows the last ``argument``, without space around
        it; ``last_number``: the last number, as it is written; ``regex``: of the first match of the
        pattern ``argument`` the first group that took part, or all of it where there is no group.
    """

    kind: str = "line"
    argument: str = ""

    def __call__(self, generation: str) -> str:
        """The prediction; empty where what is looked for is not there."""
        if self.kind == "line":
            return first_line(generation)
        if self.kind == "all":
            return generation.strip()
        if self.kind == "after":
            _, found, behind = generation.rpartition(self.argument)
            return behind.strip() if found else ""
        if self.kind == "last_number":
            return last_number(generation)
        match = re.search(self.argument, generation)
        if match is None:
            return ""
        # Of alternatives with a group each, that of the one that matched.
        taken = (group for group in match.groups() if group is not None)
        return next(taken, "") if match.re.groups else match[0]

    @property
    def after_thought(self) -> bool:
        """Whether it takes what follows a thought."""
        return self.kind == "after" and "</think>" in self.argument

    def check_shown(self, tokenizer: Any) -> None:
        """Raises UserError where what it looks for is in no generation of this tokenizer's.

        A generation is text without special tokens, so that every prediction would be empty.
        """
        if self.kind != "after":
            return
        for token in tokenizer.added_tokens_decoder.values():
            if token.special and token.content in self.argument:
                raise UserError(
                    f"--extract {self}: {token.content} is a special token of this model, which "
                    "generations are shown without; name a text that is shown"
                )

    def __str__(self) -> str:
        return f"{self.kind}:{self.argument}" if self.kind in WITH_ARGUMENT else self.kind


FIRST_LINE = Extraction()


def parse_extraction(text: str) -> Extraction:
    """What --extract asks for.

    Raises:
        UserError: it is none of `SPELLINGS`, or the pattern is no regular expression.
    """
    if not isinstance(text, str):
        raise UserError(f"{text!r} is none of {', '.join(SPELLINGS)}")
    kind, colon, argument = text.partition(":")
    if kind in WITH_ARGUMENT and argument:
        if kind == "regex":
            _check_pattern(argument)
        return Extraction(kind, argument)
    if kind in WITHOUT_ARGUMENT and not colon:
        return Extraction(kind)
    raise UserError(f"{text!r} is none of {', '.join(SPELLINGS)}")


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression: {error}") from None
