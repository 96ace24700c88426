"""Single-prompt references: each whole prompt by itself through plain transformers.

What the engine encodes and decodes for many paraphrases at a time is held against these. None of
the project's attention takes part in them.

Legend: ``P`` prefix tokens, ``N`` paraphrases of a question, ``R`` questions, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.patching import MaskedState
from self_ensemble.attention.scoring import KeyValues
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.diagnostics.measured_masks import EncodedForward
from self_ensemble.diagnostics.probes import STEPS, step_logits
from self_ensemble.diagnostics.tolerances import largest, logit_difference, state_difference
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.streams import attention_streams


@dataclass(frozen=True)
class SinglePromptReference:
    """A whole prompt and one token more, by itself in plain transformers.

    hidden: the last hidden states of the segment's tokens, [n, hidden size].
    layers: their keys and values by layer.
    logits: after the prompt, and after the token, [2, V] float32.
    """

    hidden: torch.Tensor
    layers: dict[int, KeyValues]
    logits: torch.Tensor


@dataclass(frozen=True)
class FusedAndReference:
    """One paraphrase, as fused tokens have it and as its own prompt has it.

    fused: logits after the tail and after the token then chosen, [2, V], by a fusion that listens
        to this paraphrase only.
    """

    fused: torch.Tensor
    reference: SinglePromptReference


def run_single_prompt(
    engine: Engine,
    prefix: Sequence[int],
    segment: Sequence[int],
    tail: Sequence[int],
    token: int,
) -> SinglePromptReference:
    """One forward of prefix, segment, tail and token through the model as it came."""
    model, cache = engine.model, DynamicCache()
    hidden: list[torch.Tensor] = []
    own = slice(len(prefix), len(prefix) + len(segment))
    ids = torch.tensor([[*prefix, *segment, *tail, token]], device=engine.device)

    def keep(module: Any, args: Any, output: Any) -> None:
        hidden.append(output.last_hidden_state)

    hook = model.base_model.register_forward_hook(keep)
    try:
        with engine.wrapper.taken_out():
            model.set_attn_implementation("eager")
            logits = model(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=STEPS
            ).logits
    finally:
        hook.remove()
    layers: dict[int, KeyValues] = {}
    for index, layer in enumerate(cache.layers):
        keys: Any = layer.keys  # type: ignore[union-attr]  # no linear attention comes here
        values: Any = layer.values  # type: ignore[union-attr]
        layers[index] = KeyValues(keys[0, :, own], values[0, :, own])
    return SinglePromptReference(hidden[0][0, own], layers, logits[0].float())


def listens_to_one(fusion: Fusion, positions: str) -> bool:
    """Whether `compare_with_single_prompts` fuses all paraphrases with all the weight on one.

    Other positions put paraphrases elsewhere than their own prompts do, and one softmax over all
    of them adds to the scores: there each paraphrase is asked by itself.
    """
    return positions == "exact" and fusion.kind == "mean"


def compare_with_single_prompts(
    engine: Engine,
    prefix: tuple[int, ...],
    split: Sequence[SplitQuestion],
    positions: str,
    fusion: Fusion,
) -> list[list[FusedAndReference]]:
    """Every paraphrase of every question: fused and listened to alone, and by itself.

    Under ``exact`` positions all paraphrases are fused, with all the weight on one: the others are
    encoded and laid out, queries are re-rotated towards them, and they must count for nothing.
    See `listens_to_one`.

    Args:
        engine: whose model is patched.
        prefix: what every prompt begins with.
        split: questions with as many segments each.
        positions, fusion: as asked for; the fusion's own weights do not count.

    Returns:
        By question and paraphrase.
    """
    fused = _fused_one_by_one(engine, prefix, split, positions, fusion)
    return [
        [
            FusedAndReference(
                logits,
                run_single_prompt(
                    engine, prefix, segment, question.tail, int(logits[0].argmax().item())
                ),
            )
            for segment, logits in zip(question.segments, of_question.unbind(1), strict=True)
        ]
        for question, of_question in zip(split, fused.unbind(1), strict=True)
    ]


def _fused_one_by_one(
    engine: Engine,
    prefix: tuple[int, ...],
    split: Sequence[SplitQuestion],
    positions: str,
    fusion: Fusion,
) -> torch.Tensor:
    """[STEPS, R, N, V]."""
    P, N = len(prefix), len(split[0].segments)
    if listens_to_one(fusion, positions):
        streams = [attention_streams(question, P, positions) for question in split]
        one_hot = [replace(fusion, weights=row) for row in torch.eye(N, device=engine.device)]
        each = [step_logits(engine, prefix, streams, steps=STEPS, fusion=one) for one in one_hot]
        return torch.cat(each, dim=2)
    single = [
        replace(question, segments=(segment,))
        for question in split
        for segment in question.segments
    ]
    streams = [attention_streams(question, P, positions) for question in single]
    unweighted = replace(fusion, weights=None)
    found = step_logits(engine, prefix, streams, steps=STEPS, fusion=unweighted)
    return found.view(STEPS, len(split), N, -1)


def fused_difference(compared: Sequence[FusedAndReference]) -> float:
    """The largest of a question's paraphrases, as a part of the logits' spread."""
    return largest(logit_difference(each.fused, each.reference.logits) for each in compared)


def comparable_positions(positions: str) -> str:
    """Under which segments stand where they stand in their own prompts."""
    return positions if positions == "exact" else "left"


def packed_differences(
    packed: EncodedForward,
    lengths: Sequence[int],
    references: Sequence[SinglePromptReference],
    at: int = 0,
) -> list[dict[str, tuple[float, float]]]:
    """A segment each: kind → how far its states are off, see `tolerances.state_difference`.

    packed: the forward that encoded the segments. at: where the first one stands in it.
    """
    found = []
    for length, reference in zip(lengths, references, strict=True):
        pairs = _packed_and_reference(packed, slice(at, at + length), reference)
        differences = {kind: [state_difference(*pair) for pair in of] for kind, of in pairs.items()}
        found.append(
            {
                kind: (largest(relative for relative, _ in of), largest(most for _, most in of))
                for kind, of in differences.items()
            }
        )
        at += length
    return found


def _packed_and_reference(
    packed: EncodedForward, own: slice, reference: SinglePromptReference
) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """kind → pairs of a segment's states, by layer where layers have their own."""
    pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"keys": [], "values": []}
    for layer, wanted in reference.layers.items():
        mine = packed.state.layers[layer]
        pairs["keys"].append((mine.keys[:, own], wanted.keys))
        pairs["values"].append((mine.values[:, own], wanted.values))
    pairs["hidden states"] = [(packed.hidden[own], reference.hidden)]
    return pairs


def unmasked_difference(
    engine: Engine,
    prefix: Sequence[int],
    question: SplitQuestion,
    references: Sequence[SinglePromptReference],
) -> float:
    """How far the segments' hidden states are off if each also sees the segments before it."""
    P, lengths = len(prefix), question.lengths
    ids = [*prefix, *(token for segment in question.segments for token in segment)]
    positions = [*range(P), *(P + at for length in lengths for at in range(length))]
    with engine.wrapper.using(MaskedState(backend="eager")):
        mixed = engine.model.base_model(
            input_ids=torch.tensor([ids], device=engine.device),
            position_ids=torch.tensor([positions], device=engine.device),
            use_cache=False,
        ).last_hidden_state[0, P:]
    pairs = zip(mixed.split(lengths), references, strict=True)
    return largest(state_difference(states, one.hidden)[0] for states, one in pairs)
