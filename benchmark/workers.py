"""Questions a second of several workers against one process, in one run.

    python benchmark/workers.py
    python benchmark/workers.py --model MODEL --dataset FILE --few_shot FILE --instruction TEXT
    python benchmark/workers.py --shape 3b --questions 20000

Attention fusion answers the questions of a data set, the demo's by default. With --shape a model of
random weights in a shape of Llama 3 answers random questions, those of benchmark/split.py, on GPUs
in bfloat16. Answers are held against those of the first number of workers: in float32 a token that
differs, or a log-probability by more than 1e-4, is exit status 1.

Of each number of workers a row: how long loading took, how long the questions took the first time,
with what is compiled and captured then, and questions a second the second time; medians. The
numbers of workers take turns, so that a machine whose speed drifts shows in all.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from gpu import SHAPES
from measure import TOLERANCE, compare_answers

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
from self_ensemble.cli.types import index_list, positive_int


@dataclass(frozen=True)
class Measured:
    """loading, first, second: seconds. answers: in order."""

    loading: float
    first: float
    second: float
    answers: list


@contextmanager
def model_and_request(args: argparse.Namespace) -> Iterator[tuple]:
    """The configuration of a model, and a function from an engine to the request to make of it."""
    from split import make_request, save_model

    from self_ensemble.data import chat_prompt_template
    from self_ensemble.experiment.questions import read_questions
    from self_ensemble.generation.config import GenerationConfig
    from self_ensemble.methods.attention_fusion import AttentionFusion
    from self_ensemble.models.config import ModelConfig

    if args.shape is not None:
        with tempfile.TemporaryDirectory(prefix="workers-") as folder:
            save_model(Path(folder), args.shape)
            config = ModelConfig(name=folder, dtype="bfloat16")
            request = make_request(args.questions)
            yield config, lambda engine: request
        return
    limit = GenerationConfig(args.max_new_tokens)
    data = read_questions(question_config(args), prompt_config(args), model=args.model)
    questions = [record.paraphrases for record in data.records]

    def request_of(engine):
        template = data.template
        if args.chat_template:
            template = chat_prompt_template(engine.tokenizer, template)
        return AttentionFusion().request(engine, template, questions, limit)

    yield model_config(args), request_of


def measure_one(source, config, number: int, request_of, batch_size) -> Measured:
    from self_ensemble.workers.config import WorkersConfig
    from self_ensemble.workers.loading import answering_engine

    times = [time.perf_counter()]
    with answering_engine(source, config, WorkersConfig(number=number)) as engine:
        request = request_of(engine)
        engine.schedule(request.questions, batch_size)  # once all workers have their model
        times.append(time.perf_counter())
        for _ in range(2):
            answers = dict(
                pair for batch in engine.generate(request, batch_size=batch_size) for pair in batch
            )
            times.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(times)]
    return Measured(*seconds, [answers[at] for at in range(len(answers))])


def main(args: argparse.Namespace) -> None:
    import torch

    from self_ensemble.models.loading import find_model

    set_up_logging(verbose=False)
    found: dict[int, list[Measured]] = {number: [] for number in args.workers}
    with model_and_request(args) as (config, request_of):
        source = find_model(config)
        on_gpu = source.device.type == "cuda"
        for _ in range(args.rounds):
            for number in args.workers:
                measured = measure_one(source, config, number, request_of, args.batch_size)
                found[number].append(measured)
    what = torch.cuda.get_device_name(0) if on_gpu else f"{torch.get_num_threads()} threads"
    [first, *_] = found.values()
    expected = first[0].answers
    name, count = args.shape or args.model, len(expected)
    print(f"{name}, {count} questions, {what}, torch {torch.__version__}")
    print("| workers | loading, s | first time, s | questions/s | times the first | same | apart |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base = statistics.median(each.second for each in first)
    right = True
    for number, measured in found.items():
        loading, took, seconds = (
            statistics.median(getattr(each, field) for each in measured)
            for field in ("loading", "first", "second")
        )
        same, apart = min(compare_answers(each.answers, expected) for each in measured)
        right &= same == count and apart <= TOLERANCE
        print(
            f"| {number} | {loading:.1f} | {took:.1f} | {count / seconds:.4g} "
            f"| {base / seconds:.2f} | {same} | {apart:.2g} |"
        )
    if not right and str(source.dtype) == "torch.float32":
        sys.exit(1)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_question_arguments(parser)
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    add_length_argument(parser)
    add_batch_argument(parser)
    parser.add_argument(
        "--workers",
        type=index_list,
        default=(1, 2),
        metavar="N,N,...",
        help="the first is what others are compared with (default: 1,2)",
    )
    parser.add_argument("--rounds", type=positive_int, default=3, help="(default: 3)")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights in this shape")
    parser.add_argument(
        "--questions", type=positive_int, default=20000, help="of --shape (default: 20000)"
    )
    args = parser.parse_args(argv)
    if 0 in args.workers:
        parser.error("--workers: there is no run with 0")
    check_question_arguments(parser, args)
    return args


if __name__ == "__main__":
    run(main, parse_args())
