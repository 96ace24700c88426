"""Speed on one GPU against the limit of its arithmetic: random weights in the shape of Llama 3.

    python benchmark/gpu.py
    python benchmark/gpu.py --rows ceilings,attention,avg --shape 1b --csv speed.csv

Every question has N = 5 paraphrases of 14 tokens, of which the last two are the shared tail, behind
a prefix of 110 tokens, and gets 20 new tokens. The limit is what the measured rate of a large
matrix product allows for 70 encoded tokens (no head) and 20 decoded rows a question, 100 for logit
fusion. Times are medians of runs after a warm-up.
"""

import csv
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli import Parser, run
from constants import UserError

# Hidden size, layers, query heads, intermediate size; 8 key/value heads and this vocabulary always.
SHAPES = {
    "1b": (2048, 16, 32, 8192),
    "3b": (3072, 28, 24, 8192),
    "8b": (4096, 32, 32, 14336),
}
VOCABULARY = 128256
PREFIX, SEGMENT, TAIL, PARAPHRASES, NEW_TOKENS = 110, 12, 2, 5, 20
ROWS = ("ceilings", "attention", "avg", "encode", "latency", "stock")


class NoTokenizer:
    """Stands in where token ids mean nothing."""

    eos_token_id = None
    vocab_size = VOCABULARY

    def __len__(self):
        return VOCABULARY

    def batch_decode(self, rows, **settings):
        return ["x"] * len(rows)


class Bench:
    """The model, the questions, and the table that the rows fill."""

    def __init__(self, args):
        import torch

        from attention import FlexAttentionWrapper, check_architecture
        from engine import Engine

        self.args = args
        self.torch = torch
        self.table = []
        self.model = random_llama(args.shape)
        self.weights = sum(p.numel() for p in self.model.parameters())
        head = VOCABULARY * self.model.config.hidden_size
        self.body_flop, self.head_flop = 2 * (self.weights - head), 2 * head
        self.wrapper = FlexAttentionWrapper(self.model, args.attention).patch_model()
        check_architecture(self.wrapper)
        self.engine = Engine(
            self.model, NoTokenizer(), self.wrapper, ignore_stops=True, recorded=args.recorded
        )
        generator = torch.Generator().manual_seed(0)
        self.ids = lambda n: tuple(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist())
        self.engine.set_prefix(self.ids(PREFIX))

    def questions(self, count, paraphrases=PARAPHRASES):
        from segments import SplitQuestion

        tail = self.ids(TAIL)
        return [
            SplitQuestion(tuple(self.ids(SEGMENT) for _ in range(paraphrases)), tail)
            for _ in range(count)
        ]

    def seconds(self, work, repeats=3) -> float:
        """Median of some runs after one to warm up."""
        work()
        times = []
        for _ in range(repeats):
            self.torch.cuda.synchronize()
            begun = time.perf_counter()
            work()
            self.torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    def generate(self, streams, combine, batch_size, new_tokens=NEW_TOKENS):
        from attention import Fusion

        for _ in self.engine.generate(
            streams,
            fusion=Fusion(),
            combine=combine,
            max_new_tokens=new_tokens,
            batch_size=batch_size,
        ):
            pass

    def add(self, row, value, unit, share=None, note=""):
        entry = {
            "shape": self.args.shape,
            "row": row,
            "value": f"{value:.4g}",
            "unit": unit,
            "share of the limit": "" if share is None else f"{share:.0%}",
            "note": note,
        }
        self.table.append(entry)
        print(f"{row}: {entry['value']} {unit} {entry['share of the limit']} {note}", flush=True)

    # ---- rows ----

    def ceilings(self):
        torch = self.torch
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in "ab")
        self.flops = 2 * 8192**3 * 20 / self.seconds(lambda: [a @ b for _ in range(20)])
        source = torch.empty(2**31, device="cuda", dtype=torch.bfloat16).normal_()
        target = torch.empty_like(source)
        bytes_moved = 2 * source.nbytes * 5
        self.bandwidth = bytes_moved / self.seconds(lambda: [target.copy_(source) for _ in "12345"])
        self.add("bf16 matrix product, 8192³", self.flops / 1e12, "TFLOP/s")
        self.add("memory, read and written", self.bandwidth / 1e12, "TB/s")

    def limit(self, decoded):
        encoded = PARAPHRASES * (SEGMENT + TAIL) * self.body_flop
        return self.flops / (encoded + decoded * (self.body_flop + self.head_flop))

    def throughput(self, name, streams, combine, decoded):
        for size in self.args.batch_sizes:
            chosen = streams[: 3 * size]
            self.torch.cuda.reset_peak_memory_stats()
            rate = len(chosen) / self.seconds(partial(self.generate, chosen, combine, size))
            peak = self.torch.cuda.max_memory_allocated() / 2**30
            note = f"batches of {size}, peak {peak:.1f} GiB"
            self.add(name, rate, "questions/s", rate / self.limit(decoded), note)

    def attention(self):
        from engine import attention_streams, only_stream

        questions = self.questions(3 * max(self.args.batch_sizes))
        streams = [attention_streams(q, PREFIX, "exact") for q in questions]
        self.engine.can_turn(streams, NEW_TOKENS)
        self.throughput("attention fusion", streams, only_stream, NEW_TOKENS)

    def avg(self):
        from engine import logit_streams
        from reductions import average_logits

        questions = self.questions(3 * max(self.args.batch_sizes))
        streams = [logit_streams(q, PREFIX) for q in questions]
        self.throughput("avg", streams, average_logits, NEW_TOKENS * PARAPHRASES)

    def encode(self):
        from engine import attention_streams

        streams = [attention_streams(q, PREFIX, "left")[0] for q in self.questions(512)]
        tokens = sum(stream.encoded_tokens for stream in streams)
        with self.torch.inference_mode():
            rate = tokens / self.seconds(lambda: self.engine._encode_streams(streams), repeats=5)
        self.add("encoding", rate, "tokens/s", note=f"{rate * self.body_flop / 1e12:.0f} TFLOP/s")

    def latency(self):
        """A decode step of one question alone, against reading all weights once."""
        from engine import attention_streams, only_stream

        reading = self.weights * 2 / self.bandwidth
        for count in (1, PARAPHRASES, 20):
            streams = [attention_streams(self.questions(1, count)[0], PREFIX, "exact")]
            long, short = (
                self.seconds(partial(self.generate, streams, only_stream, 1, n), repeats=5)
                for n in (NEW_TOKENS * 2, NEW_TOKENS)
            )
            step = (long - short) / NEW_TOKENS
            note = f"{step / reading:.2f} times reading the weights ({reading * 1e3:.2f} ms)"
            self.add(f"decode step, one question, N = {count}", step * 1e3, "ms", note=note)

    def stock(self):
        """`generate()`, a prompt a row, at several batch sizes."""
        prefix = self.engine.prefix_ids
        with self.wrapper.taken_out():
            for size in (320, 1280):
                prompts = [
                    [*prefix, *segment, *q.tail]
                    for q in self.questions(size // PARAPHRASES)
                    for segment in q.segments
                ]
                ids = self.torch.tensor(prompts, device="cuda")

                def work(ids=ids):
                    self.model.generate(
                        input_ids=ids,
                        attention_mask=ids.new_ones(ids.shape),
                        max_new_tokens=NEW_TOKENS,
                        min_new_tokens=NEW_TOKENS,
                        do_sample=False,
                        pad_token_id=0,
                    )

                rate = size / PARAPHRASES / self.seconds(work, repeats=1)
                self.add("stock generate()", rate, "questions/s", note=f"{size} prompts a batch")


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
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def main(args) -> None:
    import torch
    import transformers

    if not torch.cuda.is_available():
        raise UserError("benchmark/gpu.py measures a GPU, and torch sees none here")
    bench = Bench(args)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {args.attention}"
    )
    bench.ceilings()
    for row in args.rows:
        if row != "ceilings":
            getattr(bench, row)()
    columns = list(bench.table[0])
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for entry in bench.table:
        print(f"| {' | '.join(entry.values())} |")
    if args.csv:
        is_new = not args.csv.exists()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if is_new:
                writer.writeheader()
            writer.writerows(bench.table)


def row_list(text: str) -> list[str]:
    rows = text.split(",")
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise ValueError(unknown)
    return rows


def parse_args(argv: Sequence[str] | None = None):
    from cli import index_list

    parser = Parser(description=__doc__)
    parser.add_argument(
        "--rows", type=row_list, default=list(ROWS), metavar=",".join(ROWS), help="(default: all)"
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="3b", help="(default: 3b)")
    parser.add_argument("--batch_sizes", type=index_list, default=(256, 512), metavar="N,N,...")
    parser.add_argument("--attention", choices=("flex", "sdpa", "eager"), default="sdpa")
    parser.add_argument(
        "--recorded", action="store_true", help="record the decode step and replay it"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append the rows to this file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main, parse_args())
