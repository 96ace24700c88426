"""The promises of a certificate, one item each."""

from __future__ import annotations

import math
from dataclasses import dataclass

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"

# What is promised, in the order shown. The names stand in reports that programs read.
ITEMS = {
    "cut": "prefix, segment and tail are the prompt, token for token",
    "bos": "as many BOS as the tokenizer or the chat template puts, at most one",
    "positions": "the model can have the positions that are its default",
    "segments_apart": "no segment attends to another",
    "prefix_seen": "every segment attends to the whole prefix",
    "causal_order": "every token attends to its own earlier ones and to none behind it",
    "fused_sees_all": "every fused token attends to prefix, all segments and earlier fused tokens",
    "no_empty_row": "no row attends to nothing, and no padding is attended to",
    "first_token_fused": "permuting the paraphrases does not move the first token's logits",
    "packed_equals_separate": "packed segments have the states that they have alone",
    "fused_equals_alone": "with all the weight on one paraphrase, fused tokens say what its prompt "
    "says alone",
}
MASK_ITEMS = ("segments_apart", "prefix_seen", "causal_order", "fused_sees_all", "no_empty_row")


@dataclass(frozen=True)
class Item:
    """One promise: ``passed``, ``failed`` or ``not run``, with its figure and one sentence."""

    name: str
    status: str
    figure: float | int | None
    reason: str


def checked(name: str, passed: bool, figure: float | int | None, reason: str) -> Item:
    """A promise that was checked."""
    assert name in ITEMS, name
    if figure is not None and not math.isfinite(figure):
        figure = None  # JSON has no such number; the reason shows it
    return Item(name, PASSED if passed else FAILED, figure, reason)


def in_order(items: dict[str, Item], because: str) -> tuple[Item, ...]:
    """All items in the order of `ITEMS`; those that were not reached say why."""
    return tuple(items.get(name) or Item(name, NOT_RUN, None, because) for name in ITEMS)
