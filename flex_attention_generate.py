"""Answer questions by fusing their paraphrases in the attention.

All paraphrases of a question are encoded in one pass, each seeing the shared prompt and itself
only. The answer's tokens attend to all of them: one decoded row does the work of N.

    python flex_attention_generate.py
    python flex_attention_generate.py --model llama3.2_3b --dataset questions.jsonl
    python flex_attention_generate.py --layout concat --fusion joint --positions sequential
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from self_ensemble.cli.parser import (
    Parser,
    add_common_arguments,
    add_fusion_arguments,
    check_common_arguments,
    check_fusion_arguments,
    run,
)
from self_ensemble.data.names import SEPARATOR
from self_ensemble.data.result_files import attention_method_name
from self_ensemble.models.aliases import resolve_model

LAYOUTS = ("shared", "concat")

# Parts of the method that can be imported from here too, and the modules they are in: these import
# torch, which --help does not wait for.
ELSEWHERE = {
    "concatenate_paraphrases_with_positions": "self_ensemble.attention.segments",
    "create_segment_isolation_mask": "self_ensemble.attention.masks",
    "FlexAttentionWrapper": "self_ensemble.attention.patching",
}


def __getattr__(name: str):
    if name not in ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(ELSEWHERE[name]), name)


def split_and_place(engine, template, questions, *, layout, positions, max_new_tokens):
    """The questions as one stream each; the prompts' common prefix is encoded.

    Args, errors: as of `flex_attention_generation`.
    """
    from self_ensemble.attention.segments import concatenate_prompts, split_prompts
    from self_ensemble.generation.legacy import attention_streams, check_turns

    if layout == "shared":
        prefix, split = split_prompts(engine.tokenizer, template, questions)
    else:
        prefix = ()
        split = [
            concatenate_prompts(engine.tokenizer, template, paraphrases, SEPARATOR)
            for paraphrases in questions
        ]
    engine.set_prefix(prefix)
    streams = [attention_streams(question, len(prefix), positions) for question in split]
    check_turns(engine, streams, max_new_tokens)
    return streams


def flex_attention_generation(
    engine,
    template,
    questions: Sequence[Sequence[str]],
    *,
    layout: str,
    positions: str,
    fusion,
    max_new_tokens: int,
    batch_size: int | None,
) -> Iterator[list]:
    """The whole method: split, encode once in isolation, fuse from the tail on, decode greedily.

    Args:
        engine: an `engine.Engine` around a patched model.
        template: a `dataset.PromptTemplate`.
        questions: the N paraphrases of each question; N is the same for all.
        layout: ``shared`` (prefix once, N segments, tail) or ``concat`` (whole prompts joined).
        positions: ``exact``, ``left``, ``right`` or ``sequential``; see `positions.py`.
        fusion: a `fusion.Fusion`.
        max_new_tokens: the limit of generated tokens.
        batch_size: questions a batch; None chooses.

    Yields:
        Batches of (index of the question, `engine.Answer`).

    Raises:
        UserError: the tokenizer, the model or the lengths do not allow it.
    """
    from self_ensemble.generation.legacy import only_stream

    streams = split_and_place(
        engine,
        template,
        questions,
        layout=layout,
        positions=positions,
        max_new_tokens=max_new_tokens,
    )
    return engine.generate(
        streams,
        fusion=fusion,
        combine=only_stream,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )


def names_without_a_model(args) -> tuple[list[str], dict]:
    """What may name the result, and its method's settings, as far as the command line tells.

    A file's name leaves out the positions that are its model's default: exact or left.
    """
    chosen = {"layout": args.layout, "fusion": args.fusion}
    if args.positions:
        chosen["positions"] = args.positions
    settings = {"name": "flex_attention", **chosen, "tau": args.fusion_tau, "weights": args.weights}
    names = [
        attention_method_name(
            {"positions": default, **chosen},
            {"layout": "shared", "positions": default, "fusion": "mean"},
        )
        for default in (("left",) if args.fusion == "joint" else ("exact", "left"))
    ]
    return list(dict.fromkeys(names)), settings


def main(args) -> Path:
    """Run a command line. Returns the result's path without its suffix."""
    from self_ensemble.experiment.run import (
        Run,
        check_weights,
        lemmatize_finished,
        read_questions,
        set_up_logging,
    )

    resolve_model(args.model)  # a name that can be nothing is told first
    questions = read_questions(args)
    check_weights(args, questions)
    if args.lemmaize:
        return lemmatize_finished(args, questions, *names_without_a_model(args))

    set_up_logging(args.verbose)
    from self_ensemble.generation.legacy import loaded_engine
    from self_ensemble.models.loading import find_model

    source = find_model(args.model, revision=args.revision, device=args.device, dtype=args.dtype)
    default_positions = source.positions_for(args.fusion)
    defaults = {"layout": "shared", "positions": default_positions, "fusion": "mean"}
    chosen = {
        "layout": args.layout,
        "positions": args.positions or default_positions,
        "fusion": args.fusion,
    }
    settings = {"name": "flex_attention", **chosen, "tau": args.fusion_tau, "weights": args.weights}
    this = Run(args, questions, source, attention_method_name(chosen, defaults), settings)
    with this.claimed() as unfinished:
        if unfinished:
            with loaded_engine(source, attention=args.attention) as engine:
                answer_all(args, this, engine, chosen)
    return this.stem


def answer_all(args, this, engine, chosen: dict[str, str]) -> None:
    """Answer the questions of `this` run and write the result."""
    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.experiment.run import result_row
    from self_ensemble.generation.legacy import only_stream

    this.begin(engine)
    streams = split_and_place(
        engine,
        this.template,
        [record.paraphrases for record in this.records],
        layout=chosen["layout"],
        positions=chosen["positions"],
        max_new_tokens=args.max_new_tokens,
    )
    answers = this.answer(
        "attention fusion",
        streams,
        fusion=Fusion.of(args.fusion, args.fusion_tau, args.weights, engine.device),
        combine=only_stream,
        max_new_tokens=args.max_new_tokens,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
    )
    this.write(
        [
            result_row(record, answer, engine.tokenizer)
            for record, answer in zip(this.records, answers, strict=True)
        ]
    )


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    add_common_arguments(parser)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="shared",
        help="shared: the common prompt once, then the paraphrases; concat: whole prompts joined, "
        "as first described (default: %(default)s)",
    )
    add_fusion_arguments(method)
    args = parser.parse_args(argv)
    check_common_arguments(parser, args)
    check_fusion_arguments(parser, args)
    return args


if __name__ == "__main__":
    run(main, parse_args())
