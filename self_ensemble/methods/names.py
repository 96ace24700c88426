"""The methods' names: those of the scripts, and those that a user has registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from self_ensemble.methods.logit_fusion import LOGIT_METHODS
from self_ensemble.methods.votes import VOTES
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:
    from self_ensemble.methods.base import Method

ATTENTION = "attention"
UNFUSED = ("origin", "per_prompt")
SELF_CONSISTENCY = "self_consistency"
# They ask the original wording, or where there is none paraphrase 0.
ORIGINAL_WORDING = ("origin", SELF_CONSISTENCY)


def prompt_by_prompt_names() -> tuple[str, ...]:
    """Those of `generate.py --method`."""
    return (*UNFUSED, SELF_CONSISTENCY, *LOGIT_METHODS, *VOTES)


def is_weighted(name: str) -> bool:
    """Whether it is a logit method that weighs paraphrases."""
    return name in LOGIT_METHODS and LOGIT_METHODS.get(name).weighted


def method_names() -> tuple[str, ...]:
    """All of them."""
    return (ATTENTION, *prompt_by_prompt_names())


def make_method(name: str, **settings: Any) -> Method:
    """The method of this name, with its own settings.

    Args:
        name: ``attention``, ``per_prompt``, ``origin``, ``self_consistency``, or what a logit
            method or a vote is registered under.
        settings: those of the method's class, such as ``tau`` of `AttentionFusion`; None: not
            given.

    Raises:
        UserError: there is no such method, or it has no such setting.
    """
    from self_ensemble.methods.attention_fusion import AttentionFusion
    from self_ensemble.methods.prompt_by_prompt import LogitFusion, Origin, PerPrompt, Vote
    from self_ensemble.methods.self_consistency import SelfConsistency

    given = {key: value for key, value in settings.items() if value is not None}
    kind: Callable[..., Method]
    known: set[str] = set()
    if name == ATTENTION:
        kind, known = AttentionFusion, {field.name for field in fields(AttentionFusion)}
    elif name in UNFUSED:
        kind = PerPrompt if name == "per_prompt" else Origin
    elif name == SELF_CONSISTENCY:
        kind, known = SelfConsistency, {"samples"}
    elif name in LOGIT_METHODS:
        kind, known = partial(LogitFusion, name), {"weights", "weights_by"}
    elif name in VOTES:
        kind = partial(Vote, name)
    else:
        raise UserError(f"unknown method {name!r}: there is {', '.join(method_names())}")
    for setting in sorted(given.keys() - known):
        raise UserError(f"the method {name} has no setting {setting!r}")
    return kind(**given)
