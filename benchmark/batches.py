"""Does what a question gets depend on the questions it is batched with?

    python benchmark/batches.py --max_samples 500
    python benchmark/batches.py --max_samples 500 --dtype bfloat16

Attention fusion and `avg` answer every question alone, in batches of 64, in batches as they are
chosen, and in those with the questions in reversed order. Told is on how many questions the
generated tokens differ from those of the question alone, with the margin: by how much the first
token that differs led the runner-up, as a difference of logits, where the question was alone.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from self_ensemble.cli.flags import (
    add_length_argument,
    add_model_arguments,
    add_prompt_arguments,
    add_question_arguments,
    check_question_arguments,
    model_config,
    prompt_config,
    question_config,
)
from self_ensemble.cli.parser import Parser, run, set_up_logging

BATCH = 64


def answer_tokens(engine, request, batch_size) -> list[tuple]:
    """The generated tokens of each question, in order."""
    batches = engine.generate(request, batch_size=batch_size)
    answers = dict(pair for batch in batches for pair in batch)
    return [answers[index].token_ids for index in range(len(request.questions))]


def margins(engine, request, index) -> list[float]:
    """By how much each token of a question alone led the next best one."""
    found = []

    def watched(logits, weights):
        fused = request.reduce(logits, weights)
        best, second = fused[0].topk(2).values.tolist()
        found.append(best - second)
        return fused

    alone = replace(request, questions=[request.questions[index]], reduce=watched)
    answer_tokens(engine, alone, batch_size=1)
    return found


def first_difference(a: Sequence, b: Sequence) -> int:
    """The place of the first token that differs; the end of the shorter where one goes on."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


def compare(engine, request) -> dict[str, list[float]]:
    """For each way of batching the margins of the questions that differ."""
    reversed_ = replace(request, questions=request.questions[::-1])
    alone = answer_tokens(engine, request, 1)
    ways = {
        f"batches of {BATCH}": answer_tokens(engine, request, BATCH),
        "batches as chosen": answer_tokens(engine, request, None),
        "in reversed order": answer_tokens(engine, reversed_, None)[::-1],
    }
    return {
        way: [
            margins(engine, request, index)[first_difference(one, other)]
            for index, (one, other) in enumerate(zip(alone, tokens, strict=True))
            if one != other
        ]
        for way, tokens in ways.items()
    }


def main(args) -> None:
    from self_ensemble.data import chat_prompt_template
    from self_ensemble.experiment.questions import read_questions
    from self_ensemble.generation.config import GenerationConfig
    from self_ensemble.generation.loading import loaded_engine
    from self_ensemble.methods.attention_fusion import AttentionFusion
    from self_ensemble.methods.base import Asked
    from self_ensemble.methods.logit_fusion import average_logits
    from self_ensemble.methods.prompt_by_prompt import logit_request
    from self_ensemble.models.loading import find_model

    set_up_logging(verbose=False)
    data = read_questions(question_config(args), prompt_config(args), model=args.model)
    source = find_model(model_config(args))
    config = GenerationConfig(args.max_new_tokens)
    with loaded_engine(source, attention=args.attention) as engine:
        template = data.template
        if args.chat_template:
            template = chat_prompt_template(engine.tokenizer, template)
        texts = [record.paraphrases for record in data.records]
        fused = AttentionFusion().request(engine, template, texts, config)
        asked = Asked(
            engine=engine,
            template=template,
            questions=texts,
            uuids=[record.uuid for record in data.records],
            ask=lambda name, request, **how: engine.generate(request),
            config=config,
        )
        averaged = replace(logit_request(asked), reduce=average_logits)
        told = {
            "attention fusion": compare(engine, fused),
            "avg": compare(engine, averaged),
        }

    print(
        f"{len(data.records)} questions of {data.dataset.name}, {len(data.records[0].paraphrases)} "
        f"paraphrases, {args.model}, {str(source.dtype).removeprefix('torch.')}"
    )
    print("| method | batched | differ from alone | share | margin: median | largest |")
    print("| --- | --- | --- | --- | --- | --- |")
    for method, ways in told.items():
        for way, found in ways.items():
            largest = f"{statistics.median(found):.4f} | {max(found):.4f}" if found else "|"
            share = len(found) / len(data.records)
            print(f"| {method} | {way} | {len(found)} | {share:.1%} | {largest} |")


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    add_question_arguments(parser)
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    add_length_argument(parser)
    args = parser.parse_args(argv)
    check_question_arguments(parser, args)
    return args


if __name__ == "__main__":
    run(main, parse_args())
