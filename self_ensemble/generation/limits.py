"""What a model's positions and vocabulary cannot hold is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from self_ensemble.generation.likelihood import ScoringRequest
from self_ensemble.generation.request import Request
from self_ensemble.system.errors import UserError


def check_request(request: Request, config: Any, tokenizer: Any) -> None:
    """Refuse a request that the model cannot have.

    config: the text model's.

    Raises:
        UserError: a prompt is longer than the model's context, or has a token that the model does
            not know.
    """
    check_length(len(request.prefix) + 1, config)
    if request.questions:
        check_length(request.extent.answer_start + request.max_new_tokens, config)
    check_tokens([*request.prefix, request.extent.token], config, tokenizer)


def check_continuations(request: ScoringRequest, config: Any, tokenizer: Any) -> None:
    """Raises UserError where a continuation has a token that the model does not know."""
    given = chain.from_iterable(request.continuations)
    tokens = chain.from_iterable(continuation.token_ids for continuation in given)
    check_tokens(tokens, config, tokenizer, where="choices")


def check_length(length: int, config: Any) -> None:
    """Refuse what the model's positions cannot hold."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise UserError(
            f"the longest prompt needs {length} positions with its answer, more than the "
            f"model's {limit}: take fewer few-shot examples, a smaller --max_new_tokens, or a "
            "model with a longer context"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or limit
    if rope.get("rope_type") in ("longrope", "dynamic") and length > (original or length):
        raise UserError(
            f"the longest prompt needs {length} positions with its answer; beyond {original} "
            "this model turns all positions of a batch another way, so answers would depend on "
            "the questions they are batched with: take fewer few-shot examples"
        )


def check_tokens(
    tokens: Iterable[int], config: Any, tokenizer: Any, *, where: str = "prompts"
) -> None:
    """Raises UserError where a token is beyond the model's vocabulary. where: they stand."""
    highest = max(tokens, default=0)
    if highest >= config.vocab_size:
        raise UserError(
            f"the {where} hold the token {tokenizer.decode([highest])!r} ({highest}), "
            f"beyond the model's vocabulary of {config.vocab_size}: its tokenizer was "
            "extended and the model was not"
        )
