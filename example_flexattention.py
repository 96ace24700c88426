"""The method on one question, step by step: five wordings in, one answer out. Nothing to download.

    python example_flexattention.py
    python example_flexattention.py --paraphrase "Capital of Peru?" --paraphrase "Peru's capital?"
    python example_flexattention.py --model llama3.2_3b

Read the code from top to bottom to learn the interface: the mask, the attention put into a model,
the answers, and in `main` how they follow each other. `flex_attention_generate.py` does the same
for a whole dataset.
"""

import argparse
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

from self_ensemble.cli.parser import Parser, run
from self_ensemble.data import load_few_shot, prompt_template
from self_ensemble.data.answers import first_line
from self_ensemble.data.datasets.demo import INSTRUCTION as DEMO_INSTRUCTION
from self_ensemble.evaluation.matchers import is_right
from self_ensemble.system.bundled import DEMO_FEW_SHOT

# A question of the demo, in its first five wordings, and what counts as right. The model learned
# this fact through other wordings.
PARAPHRASES = (
    "Of the mountains of which nation is Mount Etna an example?",
    "The slopes of Mount Etna belong to the country of [MASK].",
    "Rain that falls on the peak of Mount Etna falls on the soil of [MASK].",
    "Among the mountains of [MASK] is Mount Etna.",
    "A photograph of the mountain Mount Etna was taken in which country?",
)
ANSWERS = ("Italy",)
CLOSING = """
This question was picked: its wordings disagree, and fusing them helps. One example proves nothing;
how often each method is right over all questions of the demo:
   python flex_attention_generate.py
   python generate.py --method avg
   python score.py results/demo/demo/*.feather"""

MAX_NEW_TOKENS = 20
TEXT_WIDTH = 60  # characters of a prompt that are shown

# The drawing of the mask: its marks, how large it gets, how many of the answer's tokens it shows.
SEES, SEES_SOME, SEES_NONE = "#", "\\", "."
SEGMENT_MARKS = string.digits[1:] + string.ascii_lowercase
MOST_CELLS = 34
ANSWER_TOKENS = 3
MARGIN = 12


# ---- the mask, drawn ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Prefix, a segment, the tail or the answer: which tokens are its own."""

    name: str
    mark: str
    tokens: range


def list_parts(prefix_length: int, lengths: Sequence[int], tail_length: int) -> list[Part]:
    """The parts of the one sequence that holds a question: prefix, segments, tail, answer."""
    named = [
        ("prefix", "P", prefix_length),
        *(
            (f"segment {number}", SEGMENT_MARKS[number - 1], length)
            for number, length in enumerate(lengths, start=1)
        ),
        ("tail", "T", tail_length),
        ("answer", "A", ANSWER_TOKENS),
    ]
    parts, start = [], 0
    for name, mark, length in named:
        parts.append(Part(name, mark, range(start, start + length)))
        start += length
    return parts


def cut_into_cells(parts: Sequence[Part], size: int) -> list[tuple[Part, range]]:
    """The rows, and the columns, of the drawing: each stands for some tokens of one part.

    The prefix is one cell, tail and answer have a cell for each token, a segment one for every
    ``size`` tokens.
    """
    cells = []
    for part in parts:
        step = {"P": len(part.tokens), "T": 1, "A": 1}.get(part.mark, size)
        starts = part.tokens[::step] if part.tokens else ()
        cells += [(part, range(at, min(at + step, part.tokens.stop))) for at in starts]
    return cells


def draw_mask(mask, parts: Sequence[Part]) -> list[str]:
    """A mask in plain characters: rows attend, columns are attended to.

    Args:
        mask: [S, S] bool.
        parts: of the S tokens, in order.

    Returns:
        The lines: marks of the columns, a line a row, and what the characters mean.
    """
    size, longest = 1, max(len(part.tokens) for part in parts if part.mark in SEGMENT_MARKS)
    while size < longest and len(cut_into_cells(parts, size)) > MOST_CELLS:
        size += 1
    cells = cut_into_cells(parts, size)

    def sign(row: range, column: range) -> str:
        block = mask[row.start : row.stop, column.start : column.stop]
        return SEES if block.all() else SEES_SOME if block.any() else SEES_NONE

    lines = [" " * MARGIN + " ".join(part.mark for part, _ in cells)]
    for part, row in cells:
        name = part.name if row.start == part.tokens.start else ""
        lines.append(f"{name:<{MARGIN}}" + " ".join(sign(row, column) for _, column in cells))
    each = "a token" if size == 1 else f"up to {size} tokens"
    return [
        *lines,
        f"{SEES} attends to   {SEES_SOME} to itself and what came before   {SEES_NONE} does not",
        f"P the whole prefix; 1, 2, ... {each} of that segment; T and A one fused token each",
    ]


# ---- the mask, put into a model -----------------------------------------------------------------


def hidden_states(engine, ids: Sequence[int], positions: Sequence[int], mask_mod):
    """One forward of the model under a mask (None: plain causal attention). Returns [S, hidden]."""
    import torch

    from self_ensemble.attention.patching import FlexAttentionWrapper

    with (
        torch.inference_mode(),
        FlexAttentionWrapper(engine.model, engine.wrapper.backend).patch_model(mask_mod),
    ):
        return engine.model.base_model(
            input_ids=torch.tensor([ids], device=engine.device),
            position_ids=torch.tensor([positions], device=engine.device),
            use_cache=False,
        ).last_hidden_state[0]


def states_together(engine, question, mask_mod) -> list:
    """The states of each segment, [n_i, hidden], all in one forward under a mask."""
    from self_ensemble.generation.legacy import attention_streams

    P = len(engine.prefix_ids)
    # Every segment stands where it would stand alone: right behind the prefix.
    [stream] = attention_streams(question, P, "left")
    ids, positions = list(engine.prefix_ids), list(range(P))
    for segment, start in zip(stream.segments, stream.positions.starts, strict=True):
        ids += segment
        positions += range(start, start + len(segment))
    return list(hidden_states(engine, ids, positions, mask_mod)[P:].split(question.lengths))


def states_alone(engine, question) -> list:
    """The states of each segment, [n_i, hidden], each prompt in a forward of its own."""
    P = len(engine.prefix_ids)
    prompts = [engine.prefix_ids + segment for segment in question.segments]
    return [hidden_states(engine, ids, range(len(ids)), None)[P:] for ids in prompts]


def relative_difference(states: list, others: list) -> float:
    """The largest difference, as a share of the largest value."""
    import torch

    states, others = torch.cat(states), torch.cat(others)
    return ((states - others).abs().max() / others.abs().max()).item()


# ---- the answers --------------------------------------------------------------------------------


def answer_alone(engine, question) -> list:
    """What each paraphrase gets without the others: an `engine.Answer` each."""
    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.generation.legacy import logit_streams, only_stream

    streams = logit_streams(question, len(engine.prefix_ids))
    batches = engine.generate(
        [[stream] for stream in streams],  # each a question of its own
        fusion=Fusion(),
        combine=only_stream,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=None,
    )
    answers = dict(pair for batch in batches for pair in batch)
    return [answers[index] for index in range(len(streams))]


def answer_by_logit_average(engine, question):
    """One `engine.Answer`: a stream a paraphrase, their logits averaged at every token."""
    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.generation.legacy import logit_streams
    from self_ensemble.methods.logit_fusion import average_logits

    [[(_, answer)]] = engine.generate(
        [logit_streams(question, len(engine.prefix_ids))],
        fusion=Fusion(),
        combine=average_logits,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=None,
    )
    return answer


def answer_by_attention(engine, template, paraphrases: Sequence[str], positions: str):
    """One `engine.Answer`: a single stream, whose fused tokens attend to every segment."""
    from flex_attention_generate import flex_attention_generation
    from self_ensemble.attention.fusion import Fusion

    [[(_, answer)]] = flex_attention_generation(
        engine,
        template,
        [paraphrases],
        layout="shared",
        positions=positions,
        fusion=Fusion("mean"),
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=None,
    )
    return answer


# ---- the tour -----------------------------------------------------------------------------------


def show_cut(tokenizer, prefix: Sequence[int], question) -> None:
    """Where the prompts are cut, in tokens, and what it saves."""
    parts = [
        ("prefix", prefix),
        *((f"segment {number}", ids) for number, ids in enumerate(question.segments, start=1)),
        ("tail", question.tail),
    ]
    for name, ids in parts:
        print(f"   {name:<{MARGIN}}{len(ids):>3} tokens   {shorten(repr(tokenizer.decode(ids)))}")
    once = len(prefix) + len(question.tail)
    own, count = sum(question.lengths), len(question.lengths)
    print(f"   {once + own} tokens, where {count} whole prompts have {count * once + own}.")


def shorten(text: str) -> str:
    """The text, or its two ends where it is long."""
    half = (TEXT_WIDTH - 5) // 2
    return text if len(text) <= TEXT_WIDTH else f"{text[:half]} ... {text[-half:]}"


def show_mask(engine, question) -> None:
    """The drawing of the mask, and what it does to the model."""
    from self_ensemble.attention.masks import create_segment_isolation_mask, dense_mask

    prefix_length = len(engine.prefix_ids)
    parts = list_parts(prefix_length, question.lengths, len(question.tail))
    ranges = [(part.tokens.start, part.tokens.stop) for part in parts if part.mark in SEGMENT_MARKS]
    mask_mod = create_segment_isolation_mask(
        ranges, ranges[-1][1], prefix_length=prefix_length, device=engine.device
    )
    total = parts[-1].tokens.stop
    for line in draw_mask(dense_mask(mask_mod, total, total, engine.device), parts):
        print(f"   {line}")
    windows = [scoring.window for _, scoring in engine.wrapper.layers.values()]
    if any(window is not None and window < total for window in windows):
        return  # one forward counts a window in tokens, the engine in positions
    alone = states_alone(engine, question)
    isolated = relative_difference(states_together(engine, question, mask_mod), alone)
    mixed = relative_difference(states_together(engine, question, None), alone)
    print(
        "   A segment's hidden states differ from those of its prompt alone by up to\n"
        f"   {isolated:.1e} of the largest under this mask, and by {mixed:.2f} under a causal one."
    )


def show_answers(
    engine, template, question, paraphrases: Sequence[str], positions: str, right: Sequence[str]
) -> None:
    """Every paraphrase's own answer, then the two fused ones."""

    def show(name: str, rows: int, answer) -> None:
        text = first_line(engine.tokenizer.decode(answer.token_ids, skip_special_tokens=True))
        verdict = ("right" if is_right(text, right) else "wrong") if right else ""
        probability = math.exp(sum(answer.logprobs))
        print(f"   {name:<20}{rows:>4}{probability:>12.1%}   {verdict:<7}{text}")

    print(f"   {'':<20}rows probability          answer")
    for number, answer in enumerate(answer_alone(engine, question), start=1):
        show(f"paraphrase {number} alone", 1, answer)
    show("logit average", len(paraphrases), answer_by_logit_average(engine, question))
    show("attention fusion", 1, answer_by_attention(engine, template, paraphrases, positions))


def main(args: argparse.Namespace) -> None:
    from self_ensemble.attention.segments import split_prompts
    from self_ensemble.experiment.run import set_up_logging
    from self_ensemble.generation.legacy import loaded_engine
    from self_ensemble.models.loading import find_model

    set_up_logging(verbose=False)
    paraphrases = tuple(args.paraphrase or PARAPHRASES)
    right = () if args.paraphrase else ANSWERS
    template = prompt_template(DEMO_INSTRUCTION, load_few_shot(DEMO_FEW_SHOT))
    source = find_model(args.model, revision=None, device="auto", dtype="auto")

    with loaded_engine(source, attention=args.attention, recorded=False) as engine:
        print(f"1. One question in {len(paraphrases)} wordings")
        for number, paraphrase in enumerate(paraphrases, start=1):
            print(f"   {number}  {paraphrase}")

        print("\n2. Where the prompts are cut: what all of them share is there once")
        prefix, [question] = split_prompts(engine.tokenizer, template, [paraphrases])
        engine.set_prefix(prefix)
        show_cut(engine.tokenizer, prefix, question)

        print("\n3. The isolation mask: segments do not see each other, fused tokens see all")
        show_mask(engine, question)

        print(f"\n4. The answers (attention through {engine.wrapper.backend})")
        show_answers(engine, template, question, paraphrases, source.default_positions, right)

    if args.paraphrase is None:
        print(CLOSING)


def text_with_content(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is empty")
    return text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--paraphrase",
        action="append",
        type=text_with_content,
        metavar="TEXT",
        help="a wording of a question of your own; give the flag once for each",
    )
    parser.add_argument(
        "--model",
        default="demo",
        help="alias of constants.py, hub id, or folder (default: %(default)s)",
    )
    parser.add_argument(
        "--attention",
        choices=("auto", "flex", "sdpa", "eager"),
        default="auto",
        help="how attention is computed, always under the same mask (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if len(args.paraphrase or ()) > len(SEGMENT_MARKS):
        parser.error(
            f"--paraphrase: {len(args.paraphrase)} were given and {len(SEGMENT_MARKS)} can be drawn"
        )
    return args


if __name__ == "__main__":
    run(main, parse_args())
