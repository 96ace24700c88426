"""Answer questions one paraphrase at a time, or by fusing the paraphrases' logits.

    python generate.py                        average the logits of five paraphrases
    python generate.py --method per_prompt    every paraphrase on its own
    python generate.py --method origin        the original wording only

Fused at every token: avg, max, prob_avg, weighted_avg, weighted_max. Fused once, by their answers:
vote. Not fused: origin, per_prompt.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from self_ensemble.cli.parser import (
    Parser,
    add_common_arguments,
    check_common_arguments,
    positive_int,
    run,
)
from self_ensemble.data.registry import dataset_names
from self_ensemble.methods.logit_fusion import LOGIT_METHODS, confidence
from self_ensemble.methods.votes import majority
from self_ensemble.models.aliases import resolve_model
from self_ensemble.system.errors import UserError

REDUCTIONS = {name: LOGIT_METHODS.get(name).reduce for name in LOGIT_METHODS}
WEIGHTED = tuple(name for name in LOGIT_METHODS if LOGIT_METHODS.get(name).weighted)
METHODS = ("origin", "per_prompt", *REDUCTIONS, "vote")


def split_and_set_prefix(engine, template, records):
    """The questions as streams, one a paraphrase; the prompts' common prefix is encoded."""
    from self_ensemble.attention.segments import split_prompts
    from self_ensemble.generation.legacy import logit_streams

    prefix, split = split_prompts(
        engine.tokenizer, template, [record.paraphrases for record in records]
    )
    engine.set_prefix(prefix)
    return [logit_streams(question, len(prefix)) for question in split]


def answer_each(this, streams, *, batch_size, **settings) -> list[list]:
    """Every paraphrase's own greedy answer: [questions][N] of `engine.Answer`."""
    from self_ensemble.generation.legacy import only_stream

    count = len(streams[0])
    alone = [[stream] for group in streams for stream in group]
    answers = this.answer(
        "each paraphrase",
        alone,
        combine=only_stream,
        batch_size=batch_size and batch_size * count,
        unit="prompts",
        **settings,
    )
    return [answers[at : at + count] for at in range(0, len(answers), count)]


def read_confidences(args, records) -> tuple[list[list[float]], str]:
    """The column --confidence of the dataset's file: N numbers a question, and its fingerprint.

    Raises:
        UserError: no such column, or not a list of enough usable numbers for every question.
    """
    from self_ensemble.data.result_files import fingerprint, read_results

    if args.dataset in dataset_names():
        raise UserError(
            f"--confidence: {args.dataset} has no such column; give a file with --dataset"
        )
    table = read_results(args.dataset)
    if args.confidence not in table:
        raise UserError(
            f"--confidence: {args.dataset} has no column {args.confidence!r}; "
            f"it has {', '.join(table.columns)}"
        )
    column = table[args.confidence].tolist()
    chosen = args.indexs or range(args.num_paraphrases)
    rows = []
    for record, cell in zip(records, column, strict=False):  # --max_samples takes the first ones
        where = f"--confidence: {args.confidence} of question {record.uuid}"
        given = _json_list(cell) if isinstance(cell, str) else cell
        if not isinstance(given, list) or len(given) <= max(chosen):
            raise UserError(
                f"{where} is no list of {max(chosen) + 1} or more numbers: {str(cell)[:80]}"
            )
        row = [given[index] for index in chosen]
        if not all(isinstance(u, int | float) and 0 <= u < math.inf for u in row) or not any(row):
            raise UserError(f"{where} must hold numbers of 0 or more, not all 0: {row}")
        rows.append([u / max(row) for u in row])  # only their ratios count, and float32 is small
    return rows, fingerprint([str(cell) for cell in column])


def _json_list(cell: str):
    """A list as a CSV has it; None for anything else."""
    try:
        return json.loads(cell)
    except ValueError:
        return None


def own_confidences(each):
    """Confidences of the paraphrases' own answers, [Q, N]; equal where all are zero."""
    import torch

    weights = torch.tensor([[confidence(answer) for answer in answers] for answers in each])
    return weights.where(weights.sum(-1, keepdim=True) > 0, torch.ones(()))


def make_rows(args, this, confidences=None) -> list[dict]:
    """Answer by the method asked for, and make the table's rows.

    Args:
        this: the `pipeline.Run`, begun.
        confidences: from `read_confidences`; None takes those of the paraphrases' own answers.
    """
    import torch

    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.experiment.run import result_row

    records, tokenizer = this.records, this.engine.tokenizer
    streams = split_and_set_prefix(this.engine, this.template, records)
    settings = {
        "fusion": Fusion(),
        "max_new_tokens": args.max_new_tokens,
        "batch_size": None if args.batch_size == "auto" else args.batch_size,
    }
    if args.method in REDUCTIONS:
        weights = None
        if args.method in WEIGHTED:
            weights = (
                own_confidences(answer_each(this, streams, **settings))
                if confidences is None
                else torch.tensor(confidences, dtype=torch.float32)
            )
        answers = this.answer(
            args.method, streams, combine=REDUCTIONS[args.method], weights=weights, **settings
        )
        return [result_row(r, a, tokenizer) for r, a in zip(records, answers, strict=True)]

    each = answer_each(this, streams, **settings)
    if args.method == "origin":
        return [result_row(r, a[0], tokenizer) for r, a in zip(records, each, strict=True)]
    rows = [
        [
            result_row(record, answer, tokenizer, paraphrase=paraphrase)
            for paraphrase, answer in zip(record.paraphrases, answers, strict=True)
        ]
        for record, answers in zip(records, each, strict=True)
    ]
    if args.method == "per_prompt":
        return [row for group in rows for row in group]
    voted = [group[majority([row["prediction"] for row in group])] for group in rows]
    return [{name: row[name] for name in row if name != "paraphrase"} for row in voted]


def main(args) -> Path:
    """Run a command line. Returns the result's path without its suffix."""
    from self_ensemble.experiment.run import Run, lemmatize_finished, read_questions, set_up_logging

    resolve_model(args.model)  # a name that can be nothing is told first
    questions = read_questions(args, original=args.method == "origin")
    settings = {"name": args.method}
    confidences = None
    if args.confidence is not None:
        confidences, content = read_confidences(args, questions.records)
        settings["confidence"] = {"column": args.confidence, "fingerprint": content}
    elif args.method in WEIGHTED:
        settings["confidence"] = "own answer"
    if args.lemmaize:
        return lemmatize_finished(args, questions, [args.method], settings)

    set_up_logging(args.verbose)
    from self_ensemble.generation.legacy import loaded_engine
    from self_ensemble.models.loading import find_model

    source = find_model(args.model, revision=args.revision, device=args.device, dtype=args.dtype)
    this = Run(args, questions, source, args.method, settings)
    with this.claimed() as unfinished:
        if unfinished:
            with loaded_engine(source, attention=args.attention) as engine:
                this.begin(engine)
                given = confidences and confidences[-len(this.records) :]
                this.write(make_rows(args, this, given))
    return this.stem


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--num_ensemble",
        dest="num_paraphrases",
        type=positive_int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="another name of --num_paraphrases",
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        choices=METHODS,
        default="avg",
        help="how the paraphrases are fused (default: %(default)s)",
    )
    method.add_argument(
        "--confidence",
        metavar="COLUMN",
        help="weighted methods: a column of the dataset with a number for each paraphrase, instead "
        "of the confidence of its own answer",
    )
    args = parser.parse_args(argv)
    check_common_arguments(parser, args)
    if args.confidence is not None and args.method not in WEIGHTED:
        parser.error(f"--confidence: --method {args.method} uses no weights")
    return args


if __name__ == "__main__":
    run(main, parse_args())
