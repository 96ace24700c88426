"""How many paraphrases are drawn a second, of this toolkit or of another checkout of it.

    python benchmark/paraphrase.py --shape smollm2
    python benchmark/paraphrase.py --shape smollm2 --tree ../before --batch_size 128
    python benchmark/paraphrase.py --model MODEL --dataset FILE --chat_template

With --shape a model of random weights draws for random questions: a segment of 10 tokens and a tail
of 5 behind a prefix of 200, and 20 new tokens a draw whatever comes, in bfloat16 on a GPU. A row
beside it is the same without draws, the likeliest token each time: the difference is what drawing
costs. Median of three runs after one to warm up. Random weights spread probability over the whole
vocabulary, which on a CPU is what top-p is slowest with.

With --model it is `paraphrase.py` itself in a folder of its own, its filter and its journal
included, once: draws a second as its manifest says, without loading.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

DRAWS, PREFIX, SEGMENT, TAIL, NEW_TOKENS = 5, 200, 10, 5, 20
CPU_QUESTIONS, GPU_QUESTIONS = 50, 2032
CPU_BATCH, GPU_BATCH = 128, 1024
RUNS = 3


@dataclass(frozen=True)
class Shape:
    """Of a model in the architecture of Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int


SHAPES = {
    "smollm2": Shape(576, 30, 9, 3, 1536, 49152),
    "3b": Shape(3072, 28, 24, 8, 8192, 128256),
    "tiny": Shape(64, 2, 4, 2, 128, 512),
}


class NoTokenizer:
    """Stands in where token ids mean nothing."""

    eos_token_id = None
    added_tokens_decoder: dict = {}  # noqa: RUF012

    def batch_decode(self, rows, **settings):
        return ["x"] * len(rows)


def random_model(shape: Shape, device: str, dtype):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def requests(shape: Shape, count: int):
    """Draws for random questions, and the likeliest tokens for as many."""
    import torch

    from self_ensemble.attention.segments import SplitQuestion
    from self_ensemble.generation.request import Request
    from self_ensemble.generation.sampling import Sampling
    from self_ensemble.generation.stopping import NeverStop
    from self_ensemble.generation.streams import logit_streams

    generator = torch.Generator().manual_seed(0)

    def ids(n):
        return tuple(torch.randint(0, shape.vocabulary, (n,), generator=generator).tolist())

    prefix, tail = ids(PREFIX), ids(TAIL)
    split = [SplitQuestion((ids(SEGMENT + at % 5 - 2),), tail) for at in range(count)]
    groups = [logit_streams(question, PREFIX) for question in split for _ in range(DRAWS)]
    keys = [(f"u{at // DRAWS}", at % DRAWS) for at in range(len(groups))]
    for sampling in (Sampling(1.0, 0.95, 0, keys), None):
        yield Request(
            prefix, groups, max_new_tokens=NEW_TOKENS, stop=NeverStop(), sampling=sampling
        )


def measure_shape(args: argparse.Namespace) -> None:
    import torch

    from self_ensemble.attention.patching import FlexAttentionWrapper
    from self_ensemble.generation.engine import Engine

    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    shape = SHAPES[args.shape]
    size = args.batch_size or (GPU_BATCH if on_gpu else CPU_BATCH)
    count = args.questions or (GPU_QUESTIONS if on_gpu else CPU_QUESTIONS)
    model = random_model(shape, device, dtype)
    what = torch.cuda.get_device_name(0) if on_gpu else f"{torch.get_num_threads()} threads"
    print(f"{args.shape}, {count} questions, {DRAWS} draws each, {size} at a time, {what}")
    with FlexAttentionWrapper(model, "flex" if on_gpu else "sdpa") as wrapper:
        engine = Engine(model, NoTokenizer(), wrapper, capture=on_gpu, keep_prefix=True)
        for name, request in zip(("draws", "likeliest"), requests(shape, count), strict=True):
            times = []
            for _ in range(RUNS + 1):
                begun = time.perf_counter()
                for _ in engine.generate(request, batch_size=size):
                    pass
                times.append(time.perf_counter() - begun)
            seconds = statistics.median(times[1:])
            rate, first = len(request.questions) / seconds, times[0]
            print(
                f"{name}: {rate:.4g}/s ({seconds:.3g} s; the first time {first:.3g} s)", flush=True
            )


def measure_model(args: argparse.Namespace) -> None:
    import paraphrase
    from self_ensemble.data.result_files import read_manifest

    with tempfile.TemporaryDirectory(prefix="paraphrase-") as folder:
        stem = Path(folder) / "drawn"
        argv = ["--model", args.model, "--output", f"{stem}.jsonl", *args.shared]
        if args.batch_size is not None:
            argv += ["--batch_size", str(args.batch_size)]
        with contextlib.suppress(SystemExit):  # too few are left of some questions
            paraphrase.main(paraphrase.parse_args(argv))
        manifest = read_manifest(stem)
    draws, seconds = manifest["draws"], manifest["seconds"]
    passed = draws - manifest["flagged"]
    print(f"{draws} draws in {seconds:.1f} s: {draws / seconds:.4g}/s, {passed / draws:.1%} passed")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--shape", choices=SHAPES, help="random weights in this shape")
    kind.add_argument("--model", help="as paraphrase.py takes it; further flags are passed on")
    parser.add_argument("--questions", type=int, help="of --shape (default: 2032; on a CPU 50)")
    parser.add_argument("--batch_size", type=int, help="draws at a time (default: 1024; CPU 128)")
    parser.add_argument(
        "--tree",
        type=Path,
        default=Path(__file__).resolve().parent.parent,
        help="the checkout that is measured (default: this one)",
    )
    args, args.shared = parser.parse_known_args()
    if args.shape is not None and args.shared:
        parser.error(f"--shape does not use {' '.join(args.shared)}")
    return args


if __name__ == "__main__":
    told = parse_args()
    sys.path.insert(0, str(told.tree.resolve()))
    if told.shape is not None:
        measure_shape(told)
    else:
        measure_model(told)
