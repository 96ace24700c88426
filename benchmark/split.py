"""A model whose layers are spread over several GPUs against the same on one.

    python benchmark/split.py
    python benchmark/split.py --gpus 4 --shape 8b --questions 1000

Random weights in a shape of Llama 3 are written to a folder and loaded from it, as a user's are, on
one GPU, spread over several, and as `--device auto` has them where the first GPU is nearly full.
The answers to random questions (N = 5, 20 new tokens, as in benchmark/gpu.py) in float32 are held
against each other: a token that differs, or a log-probability by more than 1e-4, is exit status 1.
Then the speed of each in bfloat16, a median of three runs, with what is compiled and captured on
one GPU and without.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from gpu import NEW_TOKENS, PARAPHRASES, PREFIX, SEGMENT, SHAPES, TAIL, VOCABULARY, random_llama
from measure import TOLERANCE, compare_answers

from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.cli.types import positive_int
from self_ensemble.system.errors import UserError

RUNS = 3
# Of the first GPU, where auto is to need a second one: less than the weights take.
LEFT_FREE = 0.6


@dataclass(frozen=True)
class Case:
    """gpus: see `ModelConfig.gpus_per_worker`. capture: see `Ensemble`."""

    name: str
    gpus: int | None
    capture: bool = True


def save_model(folder: Path, shape: str) -> None:
    """Random weights, and a tokenizer that is never asked anything of weight."""
    from self_ensemble.models.config import ModelConfig
    from self_ensemble.models.loading import find_model, load_tokenizer

    random_llama(shape).save_pretrained(folder)
    load_tokenizer(find_model(ModelConfig(name="demo", device="cpu"))).save_pretrained(folder)


def make_request(count: int):
    """Random questions, the same for every case."""
    import torch

    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.attention.segments import SplitQuestion
    from self_ensemble.generation.request import Request
    from self_ensemble.generation.stopping import NeverStop
    from self_ensemble.generation.streams import attention_streams, only_stream

    generator = torch.Generator().manual_seed(0)

    def ids(n):
        return tuple(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist())

    tail = ids(TAIL)
    questions = [
        SplitQuestion(tuple(ids(SEGMENT + at % 3) for _ in range(PARAPHRASES)), tail)
        for at in range(count)
    ]
    return Request(
        ids(PREFIX),
        [attention_streams(question, PREFIX, "exact") for question in questions],
        Fusion(tau=1.0),
        reduce=only_stream,
        max_new_tokens=NEW_TOKENS,
        stop=NeverStop(),
    )


def measure_case(source, case: Case, request, *, batch_size: int, attention: str, runs: int):
    """The answers in order, and questions a second, after one run that is not counted."""
    import torch

    from self_ensemble.generation.loading import loaded_engine

    gc.collect()  # a model that was spread holds itself
    torch.cuda.empty_cache()
    times = []
    source = replace(source, gpus=case.gpus)
    with loaded_engine(source, attention=attention, capture=case.capture) as engine:
        for _ in range(1 + runs):
            begun = time.perf_counter()
            found = dict(
                pair for batch in engine.generate(request, batch_size=batch_size) for pair in batch
            )
            times.append(time.perf_counter() - begun)
        told = engine.environment(request.fusion, asked=attention)
    rate = len(found) / statistics.median(times[1:] or times)
    number_format = str(source.dtype).removeprefix("torch.")
    path = f"{told['attention']['encode']}, {told['attention']['decode']}"
    print(f"{case.name}, {number_format}: {rate:.4g} questions/s ({path}; {told['device']})")
    return [found[at] for at in range(len(found))], rate


def compare(name: str, found, expected) -> bool:
    """Whether the answers are those of one GPU; says how many."""
    same, furthest = compare_answers(found, expected)
    print(
        f"{name}: {same} of {len(expected)} answers the same, log-probabilities by {furthest:.2g}"
    )
    return same == len(expected) and furthest <= TOLERANCE


def fill_first_gpu(weights: int):
    """Take memory of the first GPU, so that the weights do not fit beside it."""
    import torch

    gc.collect()  # the models before, and what torch keeps of their memory
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(0)
    return torch.empty(max(0, free - int(LEFT_FREE * weights)), dtype=torch.uint8, device="cuda:0")


def main(args: argparse.Namespace) -> None:
    import torch

    from self_ensemble.models.config import ModelConfig
    from self_ensemble.models.loading import find_model
    from self_ensemble.models.memory import weight_bytes

    set_up_logging(verbose=False)
    count = torch.cuda.device_count()
    if count < args.gpus:
        raise UserError(f"--gpus {args.gpus}: this machine has {count} GPUs that torch can use")
    print(f"{args.shape}, {torch.cuda.get_device_name(0)} × {count}, torch {torch.__version__}")
    request = make_request(args.questions)
    settings = {"batch_size": args.batch_size, "attention": args.attention}
    with tempfile.TemporaryDirectory(prefix="split-") as folder:
        save_model(Path(folder), args.shape)
        source = find_model(ModelConfig(name=folder, dtype="float32"))
        one, spread = Case("one GPU, plain", 1, capture=False), Case(f"{args.gpus} GPUs", args.gpus)
        expected, _ = measure_case(source, one, request, runs=1, **settings)
        found, _ = measure_case(source, spread, request, runs=1, **settings)
        right = compare(spread.name, found, expected)
        held = fill_first_gpu(weight_bytes(source.config, source.dtype))
        auto = Case("auto, the first GPU nearly full", None)
        found, _ = measure_case(source, auto, request, runs=1, **settings)
        del held
        right &= compare(auto.name, found, expected)
        half = replace(source, dtype=torch.bfloat16)
        cases = (Case("one GPU", 1), one, spread)
        rates = [measure_case(half, case, request, runs=RUNS, **settings)[1] for case in cases]
    captured, plain, split = rates
    print(
        f"on {args.gpus} GPUs: {split / plain:.2f} of one GPU's speed without CUDA graphs, "
        f"{split / captured:.2f} with them"
    )
    if not right:
        sys.exit(1)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="3b", help="(default: 3b)")
    parser.add_argument(
        "--gpus", type=positive_int, default=2, metavar="N", help="to spread over (default: 2)"
    )
    parser.add_argument("--questions", type=positive_int, default=200, help="(default: 200)")
    parser.add_argument(
        "--batch_size", type=positive_int, default=100, help="at a time (default: 100)"
    )
    parser.add_argument("--attention", default="auto", help="as the scripts take it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main, parse_args())
