"""What benchmarks share: runs of the scripts, timing, ceilings, answers that end, comparisons."""

import random
import statistics
import time
from collections.abc import Sequence

from self_ensemble.system.console import say

DEVICE = "cuda"  # what is measured; the tests run every row on a CPU
SIDE, NUMBERS = 8192, 2**31  # of the matrices and of the copy that show the ceilings
TOLERANCE = 1e-4  # of log-probabilities that are to be the same in float32


def run_scripts(commands):
    """Runs each (script, its arguments), a finished file not again; the stems of their results."""
    stems = []
    for script, arguments in commands:
        say(f"{script.__name__}.py {' '.join(arguments)}")
        stems.append(script.main(script.parse_args(arguments)))
    return stems


def without_ours(engine):
    """Within, the engine's model is as it was before it was patched, and has all the memory."""
    engine.release()
    return engine.wrapper.taken_out()


def ends_at_random(least: int, most: int):
    """A stop rule under which answers have least to most tokens, each number as likely."""
    from self_ensemble.generation.stopping import Cut, NeverStop

    chance = random.Random(0)

    class EndsAtRandom(NeverStop):
        def cut(self, token_ids):
            count = len(token_ids)
            ends = count >= least and chance.random() * (most + 1 - count) < 1
            return Cut(0, count) if ends else None

    return EndsAtRandom()


class Table:
    """Rows of what was measured, each printed at once.

    Args:
        case: names the rows' first column.
    """

    def __init__(self, case: str):
        import torch

        self.torch = torch
        self.case = case
        self.table = []

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

    def add(self, row, value, unit, share=None, note=""):
        entry = {
            "case": self.case,
            "row": row,
            "value": f"{value:.4g}",
            "unit": unit,
            "share of the limit": "" if share is None else f"{share:.0%}",
            "note": note,
        }
        self.table.append(entry)
        print(f"{row}: {entry['value']} {unit} {entry['share of the limit']} {note}", flush=True)

    def ceilings(self):
        """The rate of a large matrix product and of memory, by events."""
        torch = self.torch

        def timed(work, count):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            times = []
            for _ in range(6):
                begin.record()
                for _ in range(count):
                    work()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) / 1e3 / count)
            return statistics.median(times[1:])

        a, b = (torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16) for _ in "ab")
        self.flops = 2 * SIDE**3 / timed(lambda: a @ b, 20)
        source = torch.empty(NUMBERS, device=DEVICE, dtype=torch.bfloat16).normal_()
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.nbytes / timed(lambda: target.copy_(source), 5)
        self.add(f"bf16 matrix product, {SIDE}³", self.flops / 1e12, "TFLOP/s")
        self.add("memory, read and written", self.bandwidth / 1e12, "TB/s")


def compare_answers(answers: Sequence, expected: Sequence) -> tuple[int, float]:
    """How many have the same tokens, and how far the log-probabilities of those are apart."""
    pairs = [(a, b) for a, b in zip(answers, expected, strict=True) if a.token_ids == b.token_ids]
    apart = [abs(p - q) for a, b in pairs for p, q in zip(a.logprobs, b.logprobs, strict=True)]
    return len(pairs), max(apart, default=0.0)
