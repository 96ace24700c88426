"""Questions a second of several workers against one process, in one run.

    python benchmark/workers.py
    python benchmark/workers.py --model MODEL --dataset FILE --few_shot FILE --instruction TEXT
    python benchmark/workers.py --shape 3b --questions 20000

Attention fusion answers the questions of a data set, the demo's by default. With --shape a model of
random weights in a shape of Llama 3 answers random questions, those of benchmark/split.py, on GPUs
in bfloat16. Answers are held against those of the first number of workers: in float32 a token that
differs, or a log-probability by more than 1e-4, is exit status 1.

Of each number of workers a row: how long it took until a tenth of the questions was answered, with
everything that is loaded, compiled and captured, and then questions a second over all of them, a
median. The numbers of workers take turns, so that a machine whose speed drifts shows in all.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from gpu import SHAPES

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

# Of the questions, one in so many is answered before the time is taken.
WARM_UP = 10
TOLERANCE = 1e-4


@contextmanager
def model_and_request(args: argparse.Namespace) -> Iterator[tuple]:
    """The configuration of a model, and a function of an engine and a share of the questions that
    gives the request to make of it."""
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
            yield config, lambda engine, share: make_request(args.questions // share)
        return
    limit = GenerationConfig(args.max_new_tokens)
    data = read_questions(question_config(args), prompt_config(args), model=args.model)
    questions = [record.paraphrases for record in data.records]

    def request(engine, share):
        template = data.template
        if args.chat_template:
            template = chat_prompt_template(engine.tokenizer, template)
        asked = questions[: max(1, len(questions) // share)]
        return AttentionFusion().request(engine, template, asked, limit)

    yield model_config(args), request


def measure_one(source, config, number: int, request, args) -> tuple[float, float, list]:
    """Seconds until the first tenth is answered, questions a second, and the answers in order."""
    from self_ensemble.workers.config import WorkersConfig
    from self_ensemble.workers.loading import answering_engine

    def answer(engine, share):
        asked = request(engine, share)
        begun = time.perf_counter()
        answers = dict(
            pair for batch in engine.generate(asked, batch_size=args.batch_size) for pair in batch
        )
        seconds = time.perf_counter() - begun
        return [answers[at] for at in range(len(answers))], seconds

    begun = time.perf_counter()
    with answering_engine(source, config, WorkersConfig(number=number)) as engine:
        answer(engine, WARM_UP)
        started = time.perf_counter() - begun
        answers, seconds = answer(engine, 1)
    return started, len(answers) / seconds, answers


def compare(answers: list, expected: list) -> tuple[int, float]:
    """How many have the same tokens, and how far the log-probabilities of those are apart."""
    pairs = [(a, b) for a, b in zip(answers, expected, strict=True) if a.token_ids == b.token_ids]
    apart = [abs(p - q) for a, b in pairs for p, q in zip(a.logprobs, b.logprobs, strict=True)]
    return len(pairs), max(apart, default=0.0)


def main(args: argparse.Namespace) -> None:
    import torch

    from self_ensemble.models.loading import find_model

    set_up_logging(verbose=False)
    found: dict[int, list[tuple[float, float, list]]] = {number: [] for number in args.workers}
    with model_and_request(args) as (config, request):
        source = find_model(config)
        on_gpu = source.device.type == "cuda"
        for _ in range(args.rounds):
            for number in args.workers:
                found[number].append(measure_one(source, config, number, request, args))
    what = torch.cuda.get_device_name(0) if on_gpu else f"{torch.get_num_threads()} threads"
    [(_, _, expected), *_] = found[args.workers[0]]
    print(
        f"{args.shape or args.model}, {len(expected)} questions, {what}, torch {torch.__version__}"
    )
    print("| workers | started after s | questions/s | times the first | same answers | apart |")
    print("| --- | --- | --- | --- | --- | --- |")
    rates = {n: statistics.median(rate for _, rate, _ in each) for n, each in found.items()}
    right = True
    for number, each in found.items():
        started = statistics.median(seconds for seconds, _, _ in each)
        same, apart = min(compare(answers, expected) for _, _, answers in each)
        right &= same == len(expected) and apart <= TOLERANCE
        print(
            f"| {number} | {started:.1f} | {rates[number]:.4g} "
            f"| {rates[number] / rates[args.workers[0]]:.2f} | {same} | {apart:.2g} |"
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
