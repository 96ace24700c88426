"""Batches on the captured path, its kernels in Triton's interpreter, held against the plain path.

    TRITON_INTERPRET=1 python test/support/captured_cases.py

The exit status is 1 where logits or tokens are off. All of the path is here but the GPU: packed
rows, buffers, batches that become smaller, the kernels. A CUDA graph is stood in for by a forward
under the very state that it was captured under.
"""

import copy
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch
from fused import (
    PREFIX,
    TAIL,
    Recorder,
    answer,
    distance,
    make_engine,
    make_request,
    question,
    tokens_of,
)
from tiny import MIXED, tiny_model

from self_ensemble.attention.fusion import FUSIONS, Fusion, mean_of_partitions, register_fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.streams import attention_streams, logit_streams
from self_ensemble.methods.logit_fusion import average_logits

STEPS = 3
TOLERANCE = 1e-4
U = (3.0, 0.0, 1.0)
MEAN = Fusion()
# Rows of other lengths, and tails of which one is padded.
ASKED = [
    question(seed=1, lengths=(6, 1, 11)),
    question(seed=2, lengths=(2, 9, 4), tail=TAIL[1:]),
]


@dataclass(frozen=True)
class Case:
    """A model and a fusion; ``then`` is asked next, in the buffers of the first."""

    model: str
    positions: str = "exact"
    fusion: Fusion = MEAN
    then: Fusion | None = None

    def __str__(self) -> str:
        return f"{self.model}, {self.positions}, {self.fusion.kind}, tau {self.fusion.tau}"


CASES = (
    Case("llama", then=Fusion.of("mean", 0.0, U, "cpu")),
    Case("llama", "left", Fusion("joint"), then=Fusion.of("joint", 0.0, U, "cpu")),
    Case("llama", fusion=Fusion("mean", 0.7)),
    Case("gemma2", "left"),  # soft cap, windows
    Case("gemma3"),  # windows, two rotary tables
    Case("gpt2", "left"),  # no rotary positions
)


class Replayed:
    """In a CUDA graph's place: the forward again, under the state that it was captured under."""

    count = 0

    def __init__(self, state, forward, ids, positions, others):
        self.state, self.forward = copy.copy(state), forward
        self.state.own = dict(state.own)

    def __call__(self, ids, positions):
        Replayed.count += 1
        with self.forward.__self__.wrapper.using(self.state):
            self.state.mark(positions, torch.ones_like(positions, dtype=torch.bool))
            return self.forward(ids, positions)


def model_of(name: str):
    """Of two layers, one with a window where the architecture has windows."""
    kinds = {"layer_types": MIXED[:2]} if name.startswith("gemma") else {}
    return tiny_model(name, num_hidden_layers=2, **kinds)


def engine_of(model, captured: bool) -> Engine:
    engine = make_engine(FlexAttentionWrapper(model, "flex", compiled=False), capture=captured)
    engine.capture_problem = lambda fusion: None  # whose check compares the same, more coarsely
    return engine


def logits_of(engine, streams, fusion, reduce=None) -> torch.Tensor:
    """Of all steps of one batch: [steps, questions, V]."""
    recorder = Recorder(reduce) if reduce else Recorder()
    answer(engine, streams, fusion, recorder, steps=STEPS)
    return torch.stack([logits[: len(streams)] for logits in recorder.logits])


def off(found: torch.Tensor, wanted: torch.Tensor) -> str:
    if found.shape != wanted.shape:
        return f"{tuple(found.shape)} for {tuple(wanted.shape)}"
    difference = distance(found, wanted)
    return "" if difference <= TOLERANCE else f"logits off by {difference:.1e}"


def problem(case: Case) -> str:
    """Why the captured path is not as the plain one; empty where it is."""
    kinds = (
        {"layer_types": ["full_attention", "sliding_attention"]} if "gemma" in case.model else {}
    )
    model = tiny_model(case.model, num_hidden_layers=2, **kinds)
    streams = [attention_streams(q, len(PREFIX), case.positions) for q in ASKED]
    plain, captured = engine_of(model, False), engine_of(model, True)
    for fusion in (case.fusion, case.then):
        if fusion is not None:
            before = Replayed.count
            wanted = logits_of(plain, streams, fusion)
            if found := off(logits_of(captured, streams, fusion), wanted):
                return found
            if Replayed.count == before:
                return "nothing was replayed"
    return ""


def logit_fusion() -> str:
    """A stream a paraphrase, and rows that stop at different steps."""
    model = model_of("llama")
    streams = [logit_streams(q, len(PREFIX)) for q in ASKED]
    plain, captured = engine_of(model, False), engine_of(model, True)
    wanted = logits_of(plain, streams, Fusion(), average_logits)
    if found := off(logits_of(captured, streams, Fusion(), average_logits), wanted):
        return found
    stops = {row.argmax().item() for row in wanted[[0, 1], [0, 1]]}

    def tokens(engine, size):
        request = make_request(streams, reduce=average_logits, steps=STEPS, stop=stops)
        return tokens_of(engine.generate(request, batch_size=size), stops)

    expected = tokens(plain, None)
    found = [tokens(captured, size) for size in (None, 1, None)]
    return "" if found == [expected] * 3 else f"tokens {found} for {expected}"


def places(fusion: Fusion, positions: str) -> str:
    """Questions with unlike numbers of paraphrases, which take each other's places."""
    lengths = ((6, 1, 11), (2, 9), (4,), (3, 5, 20))
    asked = [question(seed=i, lengths=each) for i, each in enumerate(lengths)]
    streams = [attention_streams(q, len(PREFIX), positions) for q in asked]
    model = model_of("llama")

    def tokens(captured, size):
        request = make_request(streams, fusion, steps=STEPS)
        return tokens_of(engine_of(model, captured).generate(request, batch_size=size))

    expected = tokens(False, 1)
    found = [tokens(True, size) for size in (2, 4)]
    return "" if found == [expected] * 2 else f"tokens {found} for {expected}"


def unknown_fusion() -> str:
    """One that says that a kernel computes it, which none does: an error, and not `mean`."""
    register_fusion("no kernel's", in_kernel=True)(mean_of_partitions)
    try:
        streams = [attention_streams(ASKED[0], len(PREFIX), "exact")]
        with pytest.raises(ValueError, match='no kernel computes the fusion "no kernel\'s"'):
            answer(
                engine_of(model_of("llama"), True),
                streams,
                Fusion("no kernel's"),
            )
    finally:
        FUSIONS.remove("no kernel's")
    return ""


def main() -> int:
    checks = [(str(case), lambda case=case: problem(case)) for case in CASES]
    unlike = Fusion("mean", 0.7), Fusion.of("mean", 0.0, U, "cpu"), Fusion("joint")
    checks += [
        (
            f"places, {fusion.kind}, tau {fusion.tau}",
            partial(places, fusion, "exact" if fusion.rope_offsets else "left"),
        )
        for fusion in unlike
    ]
    checks += [("logit fusion", logit_fusion), ("a fusion that no kernel knows", unknown_fusion)]
    failed = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("self_ensemble.generation.captured.CapturedStep", Replayed)
        patch.setattr("self_ensemble.generation.batching.FLEX_BUCKET", 32)
        patch.setattr(torch, "compile", lambda function, **settings: function)
        untraced = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
        patch.setattr(untraced, True, raising=False)
        for name, check in checks:
            found = check()
            failed += bool(found)
            print(f"{name}: {found or 'as the plain path'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
