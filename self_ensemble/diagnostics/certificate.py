"""What the method promises, proved on one model with its own tokenizer, template and weights.

`certify` asks a loaded engine a few questions, watches every forward that it runs, and gives a
`Certificate`: how the prompts are split, and for each promise whether it is kept, with a figure.
Nothing is printed here. Raised are only faults of the program.

Legend: ``P`` prefix tokens, ``R`` questions, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.segments import SplitQuestion, split_prompts
from self_ensemble.data import PromptTemplate
from self_ensemble.diagnostics.items import PASSED, Item, checked, in_order
from self_ensemble.diagnostics.mask_checks import Probed, check_masks
from self_ensemble.diagnostics.measured_masks import EncodedForward, watched
from self_ensemble.diagnostics.probes import STEPS, run_prefix, step_logits
from self_ensemble.diagnostics.references import (
    FusedAndReference,
    comparable_positions,
    compare_with_single_prompts,
    fused_difference,
    listens_to_one,
    packed_differences,
    unmasked_difference,
)
from self_ensemble.diagnostics.split_checks import (
    SplitTexts,
    check_bos,
    check_fed,
    check_split,
    count_bos,
    split_texts,
    tokenize_prompts,
)
from self_ensemble.diagnostics.tolerances import (
    fused_rounding,
    largest,
    logit_difference,
    rounding,
    where_largest,
    within,
)
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.streams import attention_streams, logit_streams
from self_ensemble.methods.logit_fusion import average_logits
from self_ensemble.system.errors import UserError


@dataclass(frozen=True)
class Certificate:
    """template: ``plain`` or ``chat``. bos: how many stand in front of a prompt."""

    template: str
    backend: str
    dtype: str
    positions: str
    bos: int | None
    splits: tuple[SplitTexts, ...]
    items: tuple[Item, ...]

    @property
    def passed(self) -> bool:
        return all(item.status == PASSED for item in self.items)

    @property
    def broken(self) -> list[str]:
        """The names of the promises that are not kept, or were not reached."""
        return [item.name for item in self.items if item.status != PASSED]

    def report(self) -> dict[str, Any]:
        """For JSON, under the keys that programs read."""
        found = asdict(self)
        items = found.pop("items")
        return found | {"cuts": found.pop("splits"), "items": items, "passed": self.passed}


@torch.inference_mode()
def certify(
    engine: Engine,
    template: PromptTemplate,
    questions: Sequence[Sequence[str]],
    *,
    positions: str,
    fusion: Fusion | None = None,
    chat: bool = False,
) -> Certificate:
    """The certificate of a model under one prompt template.

    Args:
        engine: around the model, which is left as it is.
        template: what stands around a paraphrase.
        questions: the paraphrases of a few questions, two of each or more and as many of all.
        positions: as the main job would choose, see `positions.assign_positions`.
        fusion: that the main job would run, its weights in the order of the paraphrases; the
            plain mean where none is given.
        chat: whether ``template`` is a chat template's.
    """
    assert len(questions) > 1 and min(map(len, questions)) > 1, questions
    fusion = fusion or Fusion()
    assert fusion.weights is None or len(fusion.weights) == len(questions[0]), fusion
    tokenizer = engine.tokenizer
    items: dict[str, Item] = {}
    bos: int | None = None
    splits: tuple[SplitTexts, ...] = ()
    because = ""
    try:
        prefix, split = split_prompts(tokenizer, template, questions)
        prompts = tokenize_prompts(tokenizer, template, questions)
        bos, splits = count_bos(tokenizer, prompts), split_texts(tokenizer, prompts, prefix, split)
        items["cut"] = check_split(prompts, prefix, split)
        items["bos"] = check_bos(tokenizer, template, prompts, prefix, chat=chat)
    except UserError as error:
        items["cut"] = checked("cut", False, None, str(error))
        because = "the prompts cannot be cut"
    else:
        try:
            with engine.computing():
                for item in _check_model(engine, prefix, split, positions, fusion):
                    items[item.name] = item
        except UserError as error:
            items.setdefault("positions", checked("positions", False, None, str(error)))
            because = str(error)
    return Certificate(
        template="chat" if chat else "plain",
        backend=engine.wrapper.backend,
        dtype=str(engine.model.dtype).removeprefix("torch."),
        positions=positions,
        bos=bos,
        splits=splits,
        items=in_order(items, because),
    )


def _check_model(
    engine: Engine,
    prefix: tuple[int, ...],
    split: Sequence[SplitQuestion],
    positions: str,
    fusion: Fusion,
) -> Iterator[Item]:
    """What the engine really does with these prompts.

    Raises:
        UserError: the model cannot have these tokens, lengths or positions, or memory runs out.
    """
    P = len(prefix)
    streams = [attention_streams(question, P, positions) for question in split]
    with watched(engine) as forwards:
        [logits, *_] = step_logits(engine, prefix, streams, steps=STEPS, fusion=fusion)
    with watched(engine) as of_prefix:
        run_prefix(engine, prefix)
    yield positions_item(positions)
    [order] = engine.schedule(streams, len(streams))
    encoded = [*of_prefix.encoded, forwards.packed]
    probed = Probed(prefix, split, streams, order, encoded, forwards.fused)
    yield from check_fed(prefix, split, order, encoded, forwards.fused[0])
    yield from check_masks(engine.tokenizer, probed, fusion)
    yield check_order(engine, prefix, split, positions, fusion, logits)
    compared = compare_with_single_prompts(engine, prefix, split, positions, fusion)
    packed = forwards.packed
    if comparable_positions(positions) != positions:
        streams = [attention_streams(question, P, "left") for question in split]
        with watched(engine) as comparable:
            step_logits(engine, prefix, streams, steps=1, fusion=fusion)
        packed = comparable.packed
    yield check_isolation(engine, probed, packed, compared)
    yield check_fused(engine, compared, positions, fusion)


def positions_item(positions: str) -> Item:
    """Of positions that the engine has taken: it proves that it can re-rotate queries."""
    if positions == "exact":
        reason = "on every layer a query turned back is the query of the earlier position"
    else:
        reason = "no query has to be turned"
    return checked("positions", True, None, f"{positions}: {reason}")


def check_order(
    engine: Engine,
    prefix: tuple[int, ...],
    split: Sequence[SplitQuestion],
    positions: str,
    fusion: Fusion,
    logits: torch.Tensor,
) -> Item:
    """The first token's logits, with the paraphrases in other orders.

    logits: in the order given, [R, 1, V].
    """
    P, N = len(prefix), len(split[0].segments)
    moved = []
    for order in (list(reversed(range(N))), [*range(1, N), 0]):
        streams = [
            attention_streams(_permuted(question, order), P, positions) for question in split
        ]
        weights = None if fusion.weights is None else fusion.weights[order]
        permuted = replace(fusion, weights=weights)
        [found] = step_logits(engine, prefix, streams, steps=1, fusion=permuted)
        moved.append(logit_difference(found, logits))
    single = [logit_streams(question, P) for question in split]
    [one_by_one] = step_logits(engine, prefix, single, steps=1, reduce=average_logits)
    first, others = one_by_one[:, :1], one_by_one[:, 1:].split(1, dim=1)
    apart = largest(logit_difference(other, first) for other in others)
    figure, allowed = largest(moved), _rounding_of(engine)
    said = (
        f"permuting the paraphrases moves the first token's logits by {figure:.2g} of their spread "
        f"(rounding: up to {allowed:.2g}); read off one paraphrase alone they would move by "
        f"{apart:.2g}"
    )
    return checked("first_token_fused", within(figure, allowed), figure, said)


def _permuted(question: SplitQuestion, order: Sequence[int]) -> SplitQuestion:
    return replace(question, segments=tuple(question.segments[i] for i in order))


def _rounding_of(engine: Engine) -> float:
    return rounding(engine.model.dtype, engine.config.num_hidden_layers)


def check_fused(
    engine: Engine,
    compared: Sequence[Sequence[FusedAndReference]],
    positions: str,
    fusion: Fusion,
) -> Item:
    """Fused tokens that listen to one paraphrase against that prompt's own logits."""
    differences = [fused_difference(each) for each in compared]
    worst = where_largest(differences)
    figure = differences[worst]
    exact = positions == "exact"
    allowed = fused_rounding(engine.model.dtype, engine.config.num_hidden_layers, exact=exact)
    way = (
        "with all the weight on one paraphrase"
        if listens_to_one(fusion, positions)
        else "asked with one paraphrase"
    )
    first, *others = (each.reference.logits[0] for each in compared[0])
    apart = largest(logit_difference(other, first) for other in others)
    return checked(
        "fused_equals_alone",
        within(figure, allowed),
        figure,
        f"{way} the logits after the tail and after the next token differ from its whole prompt's "
        f"in a stock forward by {figure:.2g} of their spread, most in question {worst + 1} "
        f"(rounding: up to {allowed:.2g}); another paraphrase's differ by {apart:.2g}",
    )


def check_isolation(
    engine: Engine,
    probed: Probed,
    packed: EncodedForward,
    compared: Sequence[Sequence[FusedAndReference]],
) -> Item:
    """Keys, values and last hidden states of every segment against its single prompt's.

    packed: the forward that encoded the segments where they stand in their prompts.
    """
    at, mixed = 0, []
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for index in probed.order:
        question = probed.split[index]
        references = [each.reference for each in compared[index]]
        differences = packed_differences(packed, question.lengths, references, at)
        at += sum(question.lengths)
        for number, each in enumerate(differences):
            for kind, pair in each.items():
                found[kind, f"segment {number} of question {index + 1}"] = pair
        mixed.append(unmasked_difference(engine, probed.prefix, question, references))
    names, relatives = list(found), [relative for relative, _ in found.values()]
    worst = where_largest(relatives)
    (worst_kind, where), figure = names[worst], relatives[worst]
    allowed = _rounding_of(engine)
    shown = []
    for shown_kind in dict.fromkeys(kind for kind, _ in found):
        pairs = [pair for (kind, _), pair in found.items() if kind == shown_kind]
        relative, most = (largest(column) for column in zip(*pairs, strict=True))
        shown.append(f"{shown_kind} {relative:.2g} ({most:.2g})")
    return checked(
        "packed_equals_separate",
        within(figure, allowed),
        figure,
        f"relative (and largest) difference from each prompt alone: {', '.join(shown)}, most in "
        f"{worst_kind} of {where}; rounding: up to {allowed:.2g}; without the mask hidden states "
        f"would differ by {largest(mixed):.2g}",
    )
