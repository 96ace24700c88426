"""Questions a second of both fusions against stock `model.generate`, in one process.

    python benchmark/throughput.py
    python benchmark/throughput.py --model MODEL --dataset FILE --few_shot FILE --instruction TEXT
    python benchmark/throughput.py --unlike 4,400

Stock generation answers every paraphrase's prompt: left-padded batches of prompts sorted by length,
sdpa, a KV cache, the same number format and the same stop; the best of several batch sizes counts.
Tokenising counts on all sides. Everything runs once unmeasured, then each stock batch size twice.
Ours runs before and after each stock run, so that a machine whose speed drifts shows in both;
medians and their ratios are printed.

With --unlike, answers have from so many to so many tokens, each number as likely, whatever they
say, and how many of the decoded rows were of use is printed too.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from measure import ends_at_random

from self_ensemble.cli.flags import (
    add_batch_argument,
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
from self_ensemble.cli.types import index_list

STOCK_RUNS = 2


def stock_answers(
    engine, template, questions, batch_size, max_new_tokens, unlike=None
) -> list[list[tuple]]:
    """Greedy answers of stock `generate()` to every paraphrase, by question; token ids.

    unlike: see `parse_args`.
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    tokenizer, model = engine.tokenizer, engine.model

    class Stop(StoppingCriteria):
        """The engine's rule, for each row of a batch."""

        def __init__(self, rows):
            self.seen = torch.zeros(rows, dtype=torch.bool, device=model.device)

        def __call__(self, ids, scores, **kwargs):
            stop, _, self.seen = engine.line_stop(ids[:, -1], self.seen)
            return stop

    class End(StoppingCriteria):
        """Each row of a batch after a number of tokens of its own, each number as likely."""

        def __init__(self, rows):
            self.left = torch.randint(unlike[0], unlike[1] + 1, (rows,), device=model.device)

        def __call__(self, ids, scores, **kwargs):
            self.left -= 1
            return self.left <= 0

    settings = {}
    if unlike is not None:  # no token of theirs ends them
        settings = {"min_new_tokens": unlike[0], "eos_token_id": None}
    prompts = [template.render(text) for paraphrases in questions for text in paraphrases]
    encoded = tokenizer(prompts, add_special_tokens=template.add_special_tokens)["input_ids"]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    pad = next(iter(engine.eos_ids))
    answers = [()] * len(encoded)
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        width = max(len(encoded[index]) for index in batch)
        ids = torch.tensor([[pad] * (width - len(encoded[i])) + encoded[i] for i in batch])
        mask = torch.tensor(
            [[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in batch]
        )
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.long().to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([(End if unlike else Stop)(len(batch))]),
            **settings,
        )
        for index, row in zip(batch, out[:, width:].tolist(), strict=True):
            answers[index] = tuple(row)
    count = len(questions[0])
    return [answers[i : i + count] for i in range(0, len(answers), count)]


def main(args) -> None:
    import torch

    from self_ensemble.data import chat_prompt_template
    from self_ensemble.experiment.questions import read_questions
    from self_ensemble.generation.config import GenerationConfig
    from self_ensemble.generation.loading import loaded_engine
    from self_ensemble.methods.attention_fusion import AttentionFusion
    from self_ensemble.methods.base import Asked
    from self_ensemble.methods.prompt_by_prompt import LogitFusion
    from self_ensemble.models.loading import find_model
    from self_ensemble.system.console import say

    set_up_logging(verbose=False)
    data = read_questions(question_config(args), prompt_config(args), model=args.model)
    questions = [record.paraphrases for record in data.records]
    source = find_model(model_config(args))
    config = GenerationConfig(args.max_new_tokens, args.batch_size)

    with loaded_engine(source, attention=args.attention) as engine:
        template = data.template
        if args.chat_template:
            template = chat_prompt_template(engine.tokenizer, template)

        def answer(method):
            """Tokenising, splitting and answering, as the scripts and the API do it."""
            asked = Asked(
                engine=engine,
                template=template,
                questions=questions,
                uuids=[record.uuid for record in data.records],
                ask=ask,
                config=config,
            )
            for _ in method.answer(asked):
                pass

        def ask(name, request, *, batch_size, unit="questions"):
            if args.unlike is not None:
                request = replace(request, stop=ends_at_random(*args.unlike))
            generation = engine.generate(request, batch_size=batch_size)
            yield from generation
            used = generation.stats.decoded_tokens * len(request.questions[0])
            of_use[name] = used / generation.stats.decode_rows

        ours = {
            "attention fusion": partial(answer, AttentionFusion()),
            "avg": partial(answer, LogitFusion("avg")),
        }
        of_use: dict[str, float] = {}
        seconds: dict[str, list[float]] = {name: [] for name in ours}

        def measure(name, work):
            begun = time.perf_counter()
            work()
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.setdefault(name, []).append(time.perf_counter() - begun)
            say(f"{name}: {len(questions) / seconds[name][-1]:.1f} questions/s")

        def measure_ours():
            for name, work in ours.items():
                measure(name, work)

        def stock(asked, size):
            return stock_answers(engine, template, asked, size, args.max_new_tokens, args.unlike)

        for work in ours.values():
            work()  # warm up
        with engine.wrapper.taken_out():
            stock(questions[:1], 1)
        measure_ours()
        for size in args.stock_batches * STOCK_RUNS:
            with engine.wrapper.taken_out():
                measure(
                    f"generate(), batches of {size} prompts",
                    lambda size=size: stock(questions, size),
                )
            measure_ours()

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min(time_ for name, time_ in medians.items() if name not in ours)
    print(f"{len(questions)} questions, {len(questions[0])} paraphrases, {args.model}")
    print(f"{'':36} questions/s   slowest..fastest   times the best generate()")
    for name, median in medians.items():
        rates = [len(questions) / value for value in seconds[name]]
        print(
            f"{name:36} {len(questions) / median:11.1f}   {min(rates):7.1f} .. {max(rates):7.1f}"
            f"   {best / median:6.2f}"
        )
    if args.unlike is not None:
        for name, share in of_use.items():
            print(f"{name}: {share:.1%} of the decoded rows were of use")


def batch_sizes(text: str) -> tuple[int, ...]:
    sizes = index_list(text)
    if 0 in sizes:
        raise argparse.ArgumentTypeError(f"{text!r} holds a batch of no prompts")
    return sizes


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    add_question_arguments(parser)
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    add_length_argument(parser)
    add_batch_argument(parser)
    parser.add_argument(
        "--stock_batches",
        type=batch_sizes,
        default=(32, 64, 128, 256),
        metavar="N,N,...",
        help="batch sizes of stock generation, in prompts (default: 32,64,128,256)",
    )
    parser.add_argument(
        "--unlike",
        type=index_list,
        metavar="LEAST,MOST",
        help="answers have from LEAST to MOST tokens, whatever they say",
    )
    args = parser.parse_args(argv)
    if args.unlike is not None:
        if len(args.unlike) != 2 or not 0 < args.unlike[0] < args.unlike[1]:
            parser.error("--unlike: give two numbers of tokens, the smaller one first")
        args.max_new_tokens = args.unlike[1]
    check_question_arguments(parser, args)
    return args


if __name__ == "__main__":
    run(main, parse_args())
