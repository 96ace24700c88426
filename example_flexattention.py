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
from collections.abc import Sequence
from itertools import accumulate, pairwise

from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.evaluation.matchers import is_right
from self_ensemble.models.config import ATTENTIONS, ModelConfig

# A question of the demo, in its first five wordings, and what counts as right. The model learned
# this fact through other wordings.
PARAPHRASES = (
    "For a baby heron, the usual name is [MASK].",
    "When the heron has a little one, what is that little one called?",
    "Before it becomes a fully grown heron, the animal goes under which name?",
    "The English term for a juvenile heron is [MASK].",
    "Offspring of the heron: such an animal is called [MASK].",
)
ANSWERS = ("chick",)
CLOSING = """
This question was picked: its wordings disagree, and fusing them helps. One example proves nothing;
how often each method is right over all questions of the demo:
   python flex_attention_generate.py
   python generate.py --method avg
   python score.py results/demo/demo/*.feather"""

TEXT_WIDTH = 60  # characters of a prompt that are shown
ANSWER_TOKENS = 3  # of the answer, in the drawing of the mask
MOST_PARAPHRASES = 36  # each has a mark of its own in the drawing
MARGIN = 12


def isolation_mask(prefix, question):
    """Segments see the prefix and themselves, fused tokens see all. Returns a ``mask_mod``."""
    from self_ensemble.attention.masks import create_segment_isolation_mask

    ends = list(accumulate(question.lengths, initial=len(prefix)))
    ranges = list(pairwise(ends))
    return create_segment_isolation_mask(ranges, ends[-1], prefix_length=len(prefix))


def draw_mask(tokenizer, prefix, question, mask_mod) -> list[str]:
    """The mask in plain characters: rows attend, columns are attended to."""
    from self_ensemble.attention.masks import dense_mask
    from self_ensemble.diagnostics.mask_drawing import draw_text, mask_cells, question_parts
    from self_ensemble.diagnostics.words import Words

    total = len(prefix) + sum(question.lengths) + len(question.tail) + ANSWER_TOKENS
    parts = question_parts(Words(tokenizer), prefix, question, ANSWER_TOKENS)
    return draw_text(mask_cells(dense_mask(mask_mod, total, total), parts))


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


def states_together(engine, prefix, question, mask_mod) -> list:
    """The states of each segment, [n_i, hidden], all in one forward under a mask."""
    from self_ensemble.generation.streams import attention_streams

    P = len(prefix)
    # Every segment stands where it would stand alone: right behind the prefix.
    [stream] = attention_streams(question, P, "left")
    ids, positions = list(prefix), list(range(P))
    for segment, start in zip(stream.segments, stream.positions.starts, strict=True):
        ids += segment
        positions += range(start, start + len(segment))
    return list(hidden_states(engine, ids, positions, mask_mod)[P:].split(question.lengths))


def states_alone(engine, prefix, question) -> list:
    """The states of each segment, [n_i, hidden], each prompt in a forward of its own."""
    prompts = [prefix + segment for segment in question.segments]
    return [hidden_states(engine, ids, range(len(ids)), None)[len(prefix) :] for ids in prompts]


def relative_difference(states: list, others: list) -> float:
    """The largest difference, as a fraction of the largest value."""
    import torch

    states, others = torch.cat(states), torch.cat(others)
    return ((states - others).abs().max() / others.abs().max()).item()


def show_split(tokenizer, prefix: Sequence[int], question) -> None:
    """Where the prompts are split, in tokens, and what it saves."""
    parts = [
        ("prefix", prefix),
        *((f"segment {number}", ids) for number, ids in enumerate(question.segments)),
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


def show_mask(engine, prefix, question) -> None:
    """The drawing of the mask, and what it does to the model."""
    mask_mod = isolation_mask(prefix, question)
    for line in draw_mask(engine.tokenizer, prefix, question, mask_mod):
        print(f"   {line}")
    total = len(prefix) + sum(question.lengths)
    windows = [scoring.window for _, scoring in engine.wrapper.layers.values()]
    if any(window is not None and window < total for window in windows):
        return  # one forward counts a window in tokens, the engine in positions
    alone = states_alone(engine, prefix, question)
    isolated = relative_difference(states_together(engine, prefix, question, mask_mod), alone)
    mixed = relative_difference(states_together(engine, prefix, question, None), alone)
    print(
        "   A segment's hidden states differ from those of its prompt alone by up to\n"
        f"   {isolated:.1e} of the largest under this mask, and by {mixed:.2f} under a causal one."
    )


def show_answers(ensemble, paraphrases: Sequence[str], right: Sequence[str]) -> None:
    """Every paraphrase's own answer, then the two fused ones."""

    def show(name: str, rows: int, answer) -> None:
        verdict = ("right" if is_right(answer.text, right) else "wrong") if right else ""
        probability = math.exp(answer.logprob)
        print(f"   {name:<20}{rows:>4}{probability:>12.1%}   {verdict:<7}{answer.text}")

    print(f"   {'':<20}rows probability          answer")
    for number, answer in enumerate(ensemble.generate([paraphrases], method="per_prompt")):
        show(f"paraphrase {number} alone", 1, answer)
    [averaged] = ensemble.generate([paraphrases], method="avg")
    show("logit average", len(paraphrases), averaged)
    [fused] = ensemble.generate([paraphrases], method="attention")
    show("attention fusion", 1, fused)


def main(args: argparse.Namespace) -> None:
    from self_ensemble import Ensemble, Prompt
    from self_ensemble.attention.segments import split_prompts

    set_up_logging(verbose=False)
    paraphrases = tuple(args.paraphrase or PARAPHRASES)
    right = () if args.paraphrase else ANSWERS
    ensemble = Ensemble.from_pretrained(
        args.model, prompt=Prompt.of_demo(), attention=args.attention, capture=False
    )

    print(f"1. One question in {len(paraphrases)} wordings")
    for number, paraphrase in enumerate(paraphrases):
        print(f"   {number}  {paraphrase}")

    print("\n2. Where the prompts are cut: what all of them share is there once")
    template = ensemble.prompt.template(ensemble.tokenizer)
    prefix, [question] = split_prompts(ensemble.tokenizer, template, [paraphrases])
    show_split(ensemble.tokenizer, prefix, question)

    print("\n3. The isolation mask: segments do not see each other, fused tokens see all")
    show_mask(ensemble.engine, prefix, question)

    print(f"\n4. The answers (attention through {ensemble.engine.wrapper.backend})")
    show_answers(ensemble, paraphrases, right)

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
        default=ModelConfig.name,
        help="alias of constants.py, hub id, folder, or .gguf file (default: %(default)s)",
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default=ModelConfig.attention,
        help="how attention is computed, always under the same mask (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if len(args.paraphrase or ()) > MOST_PARAPHRASES:
        parser.error(
            f"--paraphrase: {len(args.paraphrase)} were given and {MOST_PARAPHRASES} can be drawn"
        )
    return args


if __name__ == "__main__":
    run(main, parse_args())
