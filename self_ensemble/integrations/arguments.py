"""What several toolkits' doors are told of a method, checked, and in the toolkit's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from self_ensemble.methods.names import ATTENTION
from self_ensemble.system.errors import UserError

# Flags of the scripts that are arguments of the same name behind every door.
SAME_NAMES = "revision|device|dtype|attention|layout|positions|weights|extract"


def check_method_arguments(
    *, method: str, num_paraphrases: int | None, weights: Sequence[float] | None
) -> None:
    """Raises UserError where one of them cannot be had: a door gives one answer to a question."""
    if method == "per_prompt":
        raise UserError("method: per_prompt answers every paraphrase; take origin for the first")
    whole = isinstance(num_paraphrases, int) and not isinstance(num_paraphrases, bool)
    if num_paraphrases is not None and not (whole and num_paraphrases > 0):
        raise UserError(f"num_paraphrases: {num_paraphrases!r} is not a whole number above 0")
    if weights is not None and method != ATTENTION:
        raise UserError("weights: for the method attention; others take weights_by")
    if weights is not None and not isinstance(weights, list | tuple):
        raise UserError(f"weights: {weights!r} is no list; write weights=[1,2,1]")


@contextmanager
def flags_named(*names: tuple[str, str]) -> Iterator[None]:
    """Inside, a sentence that names a flag of the scripts names the toolkit's argument instead.

    names: (as the scripts have it, as the toolkit has it), beside `SAME_NAMES`.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        for flag, name in names:
            text = text.replace(flag, name)
        raise UserError(re.sub(rf"--({SAME_NAMES})\b", r"\1", text)) from error
