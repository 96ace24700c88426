"""Speed on one GPU against the limits of its arithmetic and memory.

    python benchmark/gpu.py
    python benchmark/gpu.py --rows attention,avg --batch_sizes 256,512 --csv speed.csv
    python benchmark/gpu.py --rows attention,encode --shape 8b
    python benchmark/gpu.py --rows run --questions questions.parquet --model MODEL
    python benchmark/gpu.py --model MODEL --dataset FILE

Random weights in the shape of Llama 3. Every question has N = 5 paraphrases of 14 tokens, of which
the last two are the shared tail, behind a prefix of 110 tokens, and gets 20 new tokens. The limit
is what the measured rate of a large matrix product allows for 70 encoded tokens (no head) and 20
decoded rows a question, 100 for logit fusion. Times are medians after a warm-up.

With --dataset, a user's own case is measured with its own model and stops: questions a second, and
what limits them. --rows agreement holds its answers by different paths against each other.
"""

import argparse
import csv
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import measure
from measure import Table, without_ours

from self_ensemble.cli.parser import Parser, run
from self_ensemble.methods.config import DEFAULT_TAU
from self_ensemble.system.errors import UserError

# Hidden size, layers, query heads, intermediate size; 8 key/value heads and this vocabulary always.
SHAPES = {
    "1b": (2048, 16, 32, 8192),
    "3b": (3072, 28, 24, 8192),
    "8b": (4096, 32, 32, 14336),
}
VOCABULARY = 128256
PREFIX, SEGMENT, TAIL, PARAPHRASES, NEW_TOKENS = 110, 12, 2, 5, 20
# Of paraphrases; of a prefix; prompts a batch of stock generation and of continuous batching;
# questions that are encoded.
COUNTS, PREFIXES, STOCK_BATCHES = (1, 2, 5, 10, 20), (0, 110, 1000, 8000), (320, 1280, 2560)
CONTINUOUS, ENCODED = 1280, 512
LEAST, MOST = 4, 400  # tokens of an answer in the row long
FILLINGS = 4  # of the places, in the rows ragged and long
# In this order; the first of them make up points of the table that fit into nine minutes.
ROWS = (
    *("attention", "avg", "fusions", "encode", "latency", "paraphrases", "profile"),
    *("uneven", "ragged", "long", "prefix", "shapes", "stock", "first", "continuous"),
)
MORE_ROWS = ("run", "own", "agreement")
# What a kernel's name holds, by what it does; all else is small passes.
KINDS = {
    "attention of fused tokens": ("mean_kernel", "joint_kernel", "prefix_kernel", "merge_kernel"),
    "attention of encoding": ("flex_attention", "triton_tem"),
    "matrix products": ("gemm", "nvjet", "cutlass", "gemv", "splitK"),
}


class NoTokenizer:
    """Stands in where token ids mean nothing."""

    eos_token_id = None
    vocab_size = VOCABULARY
    added_tokens_decoder: ClassVar = {}

    def __len__(self):
        return VOCABULARY

    def batch_decode(self, rows, **settings):
        return ["x"] * len(rows)


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    shape: of the model, one of SHAPES.
    batch_sizes: questions a batch.
    attention: what computes it, as the generating scripts take it.
    plain: nothing is compiled and captured but FlexAttention.
    tokenizer, questions: of the row run, the model whose tokenizer it is and the file.
    """

    shape: str
    batch_sizes: tuple[int, ...]
    attention: str
    plain: bool
    tokenizer: str | None
    questions: Path | None


class Bench(Table):
    """Random weights, random questions."""

    def __init__(self, settings: Settings):
        import torch

        from self_ensemble.attention.checks import check_architecture
        from self_ensemble.attention.patching import FlexAttentionWrapper
        from self_ensemble.generation.engine import Engine

        super().__init__(settings.shape)
        self.settings = settings
        begun = time.perf_counter()
        self.model = random_llama(settings.shape)
        self.weights = sum(p.numel() for p in self.model.parameters())
        config = self.model.config
        head = VOCABULARY * config.hidden_size
        self.body_flop, self.head_flop = 2 * (self.weights - head), 2 * head
        self.token_bytes = 2 * 2 * config.num_hidden_layers * 8 * config.head_dim  # of a cache
        self.patched = ExitStack()
        self.wrapper = FlexAttentionWrapper(self.model, settings.attention)
        self.patched.enter_context(self.wrapper)
        check_architecture(self.wrapper)
        self.engine = Engine(
            self.model,
            NoTokenizer(),
            self.wrapper,
            capture=measure.DEVICE == "cuda"
            and settings.attention == "flex"
            and not settings.plain,
            keep_prefix=True,  # as the scripts do: the model is the run's own
        )
        generator = torch.Generator().manual_seed(0)
        self.ids = lambda n: tuple(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist())
        self.prefix_ids = self.ids(PREFIX)
        self.generate(self.attention_streams(4), batch_size=4)
        self.add("start: weights made, kernels compiled", time.perf_counter() - begun, "s")

    def attention_streams(self, count, paraphrases=PARAPHRASES, prefix=PREFIX, lengths=(SEGMENT,)):
        from self_ensemble.generation.streams import attention_streams

        questions = self.questions(count, paraphrases, lengths)
        return [attention_streams(question, prefix, "exact") for question in questions]

    def questions(self, count, paraphrases=PARAPHRASES, lengths=(SEGMENT,)):
        """Random questions; the lengths of a question's segments go round."""
        from self_ensemble.attention.segments import SplitQuestion

        tail, round_ = self.ids(TAIL), itertools.cycle(lengths)
        return [
            SplitQuestion(tuple(self.ids(next(round_)) for _ in range(paraphrases)), tail)
            for _ in range(count)
        ]

    def generate(
        self,
        streams,
        *,
        batch_size,
        reduce=None,
        new_tokens=NEW_TOKENS,
        prefix=None,
        stop=None,
        tau=DEFAULT_TAU["mean"],
        weigh=None,
    ):
        """Answer questions to the end; what was computed comes back."""
        from self_ensemble.attention.fusion import Fusion
        from self_ensemble.generation.request import Request
        from self_ensemble.generation.stopping import NeverStop
        from self_ensemble.generation.streams import only_stream

        request = Request(
            self.prefix_ids if prefix is None else prefix,
            streams,
            Fusion(tau=tau),
            reduce=reduce or only_stream,
            weigh=weigh,
            max_new_tokens=new_tokens,
            stop=stop or NeverStop(),
        )
        generation = self.engine.generate(request, batch_size=batch_size)
        for _ in generation:
            pass
        return generation.stats

    def step_seconds(self, streams, repeats=3) -> float:
        """Of a decode step of one batch: what twice as many new tokens take longer."""
        long, short = (
            self.seconds(
                partial(self.generate, streams, batch_size=len(streams), new_tokens=n), repeats
            )
            for n in (NEW_TOKENS * 2, NEW_TOKENS)
        )
        return (long - short) / NEW_TOKENS

    # ---- rows ----

    def limit(self, decoded):
        encoded = PARAPHRASES * (SEGMENT + TAIL) * self.body_flop
        return self.flops / (encoded + decoded * (self.body_flop + self.head_flop))

    def throughput(self, name, streams, decoded, sizes, reduce=None) -> float:
        best = 0.0
        for size in sizes:
            self.engine.release()  # memory that another row left would count as nobody's
            idle = self.torch.cuda.memory_allocated()
            chosen = streams[: 3 * size]
            self.torch.cuda.reset_peak_memory_stats()
            work = partial(self.generate, chosen, batch_size=size, reduce=reduce)
            rate = len(chosen) / self.seconds(work)
            peak = (self.torch.cuda.max_memory_allocated() - idle) / size / 2**20
            note = f"batches of {size}, peak {peak:.0f} MiB a question in flight"
            self.add(name, rate, "questions/s", rate / self.limit(decoded), note)
            best = max(best, rate)
        return best

    def attention(self):
        streams = self.attention_streams(3 * max(self.settings.batch_sizes))
        sizes = self.settings.batch_sizes
        self.best = self.throughput("attention fusion", streams, NEW_TOKENS, sizes)

    def avg(self):
        from self_ensemble.generation.streams import logit_streams
        from self_ensemble.methods.logit_fusion import average_logits

        questions = self.questions(3 * max(self.settings.batch_sizes))
        streams = [logit_streams(q, PREFIX) for q in questions]
        sizes = self.settings.batch_sizes
        self.throughput("avg", streams, NEW_TOKENS * PARAPHRASES, sizes, average_logits)

    def fusions(self):
        """Attention fusion by the dial and by weights, the first once more at the end."""
        from self_ensemble.methods.weighting import parse_weighting

        size, first = max(self.settings.batch_sizes), None
        streams = self.attention_streams(3 * size)
        cases = [(0.0, None), (1.0, None), (0.0, "entropy:1"), (1.0, "entropy:1"), (0.0, None)]
        for tau, weights_by in cases:
            weigh = weights_by and parse_weighting(weights_by).weigh
            work = partial(self.generate, streams, batch_size=size, tau=tau, weigh=weigh)
            rate = len(streams) / self.seconds(work)
            first = first or rate
            name = f"attention fusion, tau {tau:g}" + (f", {weights_by}" if weights_by else "")
            share = rate / self.limit(NEW_TOKENS)
            note = f"batches of {size}, {rate / first:.1%} of the first of these rows"
            self.add(name, rate, "questions/s", share, note)

    def uneven(self):
        """Paraphrases of 10 to 18 tokens, 14 on average: queries are turned towards each."""
        size = max(self.settings.batch_sizes)
        streams = self.attention_streams(2 * size, lengths=(8, 10, 12, 14, 16))
        rate = len(streams) / self.seconds(partial(self.generate, streams, batch_size=size))
        note = f"batches of {size}"
        share = rate / self.limit(NEW_TOKENS)
        self.add("attention fusion, 10 to 18 tokens", rate, "questions/s", share, note)

    def profile(self):
        """Where the time of one full batch goes."""
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiled

        streams = self.attention_streams(max(self.settings.batch_sizes))
        work = partial(self.generate, streams, batch_size=len(streams))
        wall = self.seconds(work)
        with profiled(activities=[ProfilerActivity.CUDA]) as found:
            work()
            self.torch.cuda.synchronize()
        spent = dict.fromkeys((*KINDS, "small passes"), 0.0)
        for entry in found.key_averages():
            kind = next((k for k, marks in KINDS.items() if any(m in entry.key for m in marks)), "")
            spent[kind or "small passes"] += entry.self_device_time_total / 1e6
        busy = sum(spent.values())
        for kind, seconds in spent.items():
            note = f"{seconds / wall:.0%} of a batch of {len(streams)}, {wall * 1e3:.0f} ms"
            self.add(f"profile: {kind}", seconds * 1e3, "ms", note=note)
        self.add("profile: the GPU waits", max(0.0, wall - busy) * 1e3, "ms")

    def shapes(self):
        """The other shapes of the family."""
        size = max(self.settings.batch_sizes) // 2
        self.engine.release()
        for shape in SHAPES:
            if shape != self.case:
                other = Bench(replace(self.settings, shape=shape))
                self.table += other.table
                other.flops, other.bandwidth, other.table = self.flops, self.bandwidth, self.table
                streams = other.attention_streams(2 * size)
                other.throughput("attention fusion", streams, NEW_TOKENS, [size])
                step = other.step_seconds(other.attention_streams(1))
                reading = other.weights * 2 / self.bandwidth
                note = f"{step / reading:.2f} times reading the weights ({reading * 1e3:.2f} ms)"
                other.add(
                    f"decode step, one question, N = {PARAPHRASES}", step * 1e3, "ms", note=note
                )
                other.patched.close()
                del other
                self.torch.cuda.empty_cache()

    def encode(self):
        streams = self.attention_streams(ENCODED)
        tokens = sum(stream.encoded_tokens for group in streams for stream in group)
        rate = tokens / self.encode_seconds(streams)
        self.add("encoding", rate, "tokens/s", note=f"{rate * self.body_flop / 1e12:.0f} TFLOP/s")

    def encode_seconds(self, streams) -> float:
        from self_ensemble.attention.buffers import BufferPool
        from self_ensemble.generation.encode import encode_prefix, encode_streams
        from self_ensemble.generation.forward import Forward

        flat = [stream for group in streams for stream in group]
        forward = Forward(self.model, self.wrapper, compiled=self.engine.captures)
        buffers = BufferPool() if self.engine.captures else None
        with self.torch.inference_mode():
            prefix = encode_prefix(forward, self.prefix_ids)
            work = partial(encode_streams, forward, flat, prefix, buffers=buffers)
            return self.seconds(work, repeats=5)

    def ragged(self):
        """Answers of 1 to 20 tokens."""
        self.unlike("answers of 1 to 20 tokens", 1, NEW_TOKENS, max(self.settings.batch_sizes))

    def long(self):
        """Answers of 4 to 400 tokens, beside `generate()` where prompts end as unlike."""
        size = max(self.settings.batch_sizes) // 2
        rate = self.unlike("answers of 4 to 400 tokens", LEAST, MOST, size)
        prompts = STOCK_BATCHES[0] * 2
        ids = self.torch.tensor(self.prompts(prompts // PARAPHRASES), device=measure.DEVICE)
        with without_ours(self.engine):
            self.model.set_attn_implementation("sdpa")
            lengths = self.torch.randint(LEAST, MOST + 1, (len(ids),), device=measure.DEVICE)

            def ended(tokens, scores, **settings):
                return tokens.shape[1] - ids.shape[1] >= lengths

            work = partial(self.stock_answers, ids, MOST, stopping_criteria=[ended])
            seconds = self.seconds(work, repeats=1)
        stock = len(ids) / PARAPHRASES / seconds
        note = f"{len(ids)} prompts a batch; attention fusion is {rate / stock:.1f} times as fast"
        self.add("stock generate(), answers of 4 to 400 tokens", stock, "questions/s", note=note)

    def unlike(self, name, least, most, size) -> float:
        """Attention fusion whose answers have unlike lengths, and the rows that were of use."""
        streams = self.attention_streams(FILLINGS * size)
        runs = []

        def work():
            stop = measure.ends_at_random(least, most)
            runs.append(self.generate(streams, batch_size=size, new_tokens=most, stop=stop))

        seconds = self.seconds(work, repeats=1)
        stats = runs[-1]
        note = f"{size} at a time, {stats.decoded_tokens / len(streams):.1f} tokens an answer, "
        note += f"{stats.decoded_tokens / stats.decode_rows:.0%} of the decoded rows of use, "
        note += f"{stats.decoded_tokens / seconds:.0f} tokens/s"
        if stats.out_of_memory:
            note += f", memory ran out at more than {stats.largest_batch}"
        rate = len(streams) / seconds
        self.add(f"attention fusion, {name}", rate, "questions/s", note=note)
        return rate

    def latency(self):
        """A decode step of one question alone, against reading all weights once.

        In rounds over N, so that a clock that drifts shows in every N.
        """
        reading = self.weights * 2 / self.bandwidth
        runs = [
            (n, tokens, self.attention_streams(1, n))
            for n in COUNTS
            for tokens in (NEW_TOKENS, 5 * NEW_TOKENS)
        ]
        times = {(n, tokens): [] for n, tokens, _ in runs}
        for _ in range(7):
            for n, tokens, streams in runs:
                work = partial(self.generate, streams, batch_size=1, new_tokens=tokens)
                times[n, tokens].append(self.seconds(work, repeats=1))
        median = {run: statistics.median(found) for run, found in times.items()}
        steps = {
            n: (median[n, 5 * NEW_TOKENS] - median[n, NEW_TOKENS]) / (4 * NEW_TOKENS)
            for n in COUNTS
        }
        for count, step in steps.items():
            note = f"{step / reading:.2f} times reading the weights ({reading * 1e3:.2f} ms)"
            note += f", {step / steps[1] - 1:+.0%} on N = 1"
            self.add(f"decode step, one question, N = {count}", step * 1e3, "ms", note=note)

    def paraphrases(self):
        """A decode step of a full batch over N, against what the further keys and values cost."""
        size = max(self.settings.batch_sizes) // 2
        first = None
        for count in COUNTS:
            step = self.step_seconds(self.attention_streams(size, count))
            first = first or step
            grown = step - first
            expected = size * (count - 1) * SEGMENT * self.token_bytes / self.bandwidth
            note = f"batch of {size}"
            if expected:
                note += (
                    f", {grown * 1e3:.2f} ms more than N = 1; the bytes: {expected * 1e3:.2f} ms"
                )
                note += f" ({grown / expected:.2f} times)"
            self.add(f"decode step, full batch, N = {count}", step * 1e3, "ms", note=note)

    def prefix(self):
        """Attention fusion behind other prefixes."""
        size = max(self.settings.batch_sizes) // 2
        for length in PREFIXES:
            prefix = self.ids(length)
            streams = self.attention_streams(2 * size, prefix=length)
            work = partial(self.generate, streams, batch_size=size, prefix=prefix)
            rate = len(streams) / self.seconds(work, repeats=1)
            self.add(f"attention fusion, prefix of {length}", rate, "questions/s", note="")

    def prompts(self, count) -> list[list[int]]:
        """Whole prompts, the paraphrases of a question behind each other."""
        return [
            [*self.prefix_ids, *segment, *question.tail]
            for question in self.questions(count)
            for segment in question.segments
        ]

    def against(self, rate) -> str:
        best = getattr(self, "best", None)
        return "" if best is None else f"; attention fusion is {best / rate:,.1f} times as fast"

    def stock_answers(self, ids, new_tokens, **settings):
        """`generate()` for a batch of prompts of one length."""
        self.model.generate(
            input_ids=ids,
            attention_mask=ids.new_ones(ids.shape),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )

    def stock(self):
        """`generate()`, a prompt a row, at several batch sizes."""
        with without_ours(self.engine):
            self.model.set_attn_implementation("sdpa")
            for size in STOCK_BATCHES:
                ids = self.torch.tensor(self.prompts(size // PARAPHRASES), device=measure.DEVICE)
                work = partial(self.stock_answers, ids, NEW_TOKENS, min_new_tokens=NEW_TOKENS)
                rate = size / PARAPHRASES / self.seconds(work, repeats=1)
                note = f"{size} prompts a batch{self.against(rate)}"
                self.add("stock generate()", rate, "questions/s", note=note)

    def first(self):
        """Both methods as first described."""
        import first_described

        with without_ours(self.engine), self.torch.inference_mode():
            prompts = self.prompts(1)
            work = partial(first_described.attention_fusion, self.model, prompts, 0, NEW_TOKENS)
            rate = 1 / self.seconds(work, repeats=1)
            note = f"a question at a time{self.against(rate)}"
            self.add("attention fusion as first described", rate, "questions/s", note=note)
            ids = self.torch.tensor(self.prompts(8), device=measure.DEVICE)
            work = partial(first_described.logit_average, self.model, ids, PARAPHRASES, NEW_TOKENS)
            rate = 8 / self.seconds(work, repeats=1)
            self.add("avg as first described", rate, "questions/s", note="8 questions at a time")

    def continuous(self):
        """`generate_batch`, transformers' continuous batching."""
        from transformers import GenerationConfig

        settings = GenerationConfig(
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        with without_ours(self.engine):
            prompts = self.prompts(CONTINUOUS // PARAPHRASES)
            work = partial(self.model.generate_batch, prompts, generation_config=settings)
            rate = CONTINUOUS / PARAPHRASES / self.seconds(work, repeats=1)
        note = f"{len(prompts)} prompts{self.against(rate)}"
        self.add("generate_batch, warm", rate, "questions/s", note=note)

    def run(self):
        """Every question of a file, repeated as paraphrases, tokenised by --model."""
        import pandas as pd
        from transformers import AutoTokenizer

        from self_ensemble.attention.segments import split_prompts
        from self_ensemble.data import prompt_template
        from self_ensemble.generation.streams import attention_streams

        tokenizer = AutoTokenizer.from_pretrained(self.settings.tokenizer)
        table = pd.read_parquet(self.settings.questions)
        column = "question" if "question" in table else table.columns[0]
        texts = [[text] * PARAPHRASES for text in table[column]]
        template = prompt_template("Answer the question.", ())

        def work():
            prefix, questions = split_prompts(tokenizer, template, texts)
            streams = [attention_streams(q, len(prefix), "exact") for q in questions]
            self.generate(streams, batch_size=None, prefix=prefix)

        seconds = self.seconds(work, repeats=2)
        note = f"{len(texts)} questions, tokenising and the prefix included"
        self.add("a whole run", seconds, "s", note=note)


def random_llama(shape: str):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, layers, heads, intermediate = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=hidden // heads,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    with torch.device(measure.DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def main(args: argparse.Namespace) -> None:
    import torch
    import transformers

    name = "no GPU"
    if measure.DEVICE == "cuda":
        if not torch.cuda.is_available():
            raise UserError("benchmark/gpu.py measures a GPU, and torch sees none here")
        name = torch.cuda.get_device_name()
    what = f"{name}, torch {torch.__version__}"
    print(f"{what}, transformers {transformers.__version__}, {args.attention}", flush=True)
    if args.dataset:
        from own_case import OwnCase

        bench = OwnCase(
            args.model,
            args.dataset,
            instruction=args.instruction,
            few_shot=args.few_shot,
            max_samples=args.max_samples,
            num_paraphrases=args.num_paraphrases,
            attention=args.attention,
            plain=args.plain,
        )
    else:
        bench = Bench(
            Settings(
                shape=args.shape,
                batch_sizes=tuple(args.batch_sizes),
                attention=args.attention,
                plain=args.plain,
                tokenizer=args.model,
                questions=args.questions,
            )
        )
    bench.ceilings()
    saved = 0
    for row in args.rows:
        getattr(bench, row)()
        if args.csv:  # row by row: what was measured is kept whatever comes
            append(args.csv, bench.table[saved:])
            saved = len(bench.table)
    columns = list(bench.table[0])
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for entry in bench.table:
        print(f"| {' | '.join(entry.values())} |")


def append(path: Path, entries: list[dict]) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(entries[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(entries)


def row_list(text: str) -> list[str]:
    rows = text.split(",")
    unknown = [row for row in rows if row not in (*ROWS, *MORE_ROWS)]
    if unknown:
        raise ValueError(unknown)
    return rows


def parse_args(argv: Sequence[str] | None = None):
    from self_ensemble.cli.types import index_list

    parser = Parser(description=__doc__)
    names = ",".join((*ROWS, *MORE_ROWS))
    parser.add_argument(
        "--rows", type=row_list, metavar=names, help="(default: all up to continuous)"
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="3b", help="(default: 3b)")
    parser.add_argument("--batch_sizes", type=index_list, default=(512, 1024), metavar="N,N,...")
    parser.add_argument("--attention", choices=("flex", "sdpa", "eager"), default="flex")
    parser.add_argument(
        "--plain", action="store_true", help="compile and record nothing but FlexAttention"
    )
    parser.add_argument("--model", help="of --dataset; of the row run the tokenizer")
    parser.add_argument("--dataset", help="measure this case: as the generating scripts take it")
    parser.add_argument("--instruction", help="of --dataset")
    parser.add_argument("--few_shot", type=Path, metavar="FILE", help="of --dataset")
    parser.add_argument("--max_samples", type=int, metavar="N", help="of --dataset: the first N")
    parser.add_argument(
        "--num_paraphrases", type=int, default=5, metavar="N", help="of --dataset (default: 5)"
    )
    parser.add_argument("--questions", type=Path, metavar="FILE", help=".parquet of the row run")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append the rows to this file")
    args = parser.parse_args(argv)
    if args.rows is None:
        args.rows = ["own"] if args.dataset else list(ROWS)
    own = {"own", "agreement"} & set(args.rows)
    if bool(args.dataset) != bool(own) or (own and set(args.rows) - own):
        parser.error("--dataset goes with the rows own and agreement, and with no others")
    if (args.dataset or "run" in args.rows) and not args.model:
        parser.error("--model is missing")
    if "run" in args.rows and not args.questions:
        parser.error("--questions is missing")
    return args


if __name__ == "__main__":
    run(main, parse_args())
