"""Questions of random tokens, and an engine that answers them: for tests of fusion."""

import itertools
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from tiny import VOCABULARY, TinyTokenizer

from self_ensemble.attention import backends as kernels
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import EncodeState
from self_ensemble.attention.patching import FlexAttentionWrapper, MaskedState
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.generation.encode import encode_streams
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.request import Request
from self_ensemble.generation.stopping import NeverStop, StopRule
from self_ensemble.generation.streams import attention_streams, logit_streams, only_stream
from self_ensemble.methods.logit_fusion import average_logits

STEPS = 6
TOLERANCE = 1e-4


def ids(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, shape, generator=generator).tolist()


PREFIX = tuple(ids(9, seed=0))
TAIL = tuple(ids(3, seed=1))
LENGTHS = {5: (6, 1, 11, 4, 16), 10: (6, 1, 11, 4, 16, 2, 7, 9, 3, 12)}


def question(N=5, seed=2, lengths=None, tail=TAIL):
    lengths = lengths or LENGTHS[N]
    return SplitQuestion(
        tuple(tuple(ids(n, seed=seed * 100 + i)) for i, n in enumerate(lengths)), tail
    )


@contextmanager
def attending(model, backend, *, compiled=False, mask_mod=None):
    """A wrapper around the patched model; on leaving, every layer must have run in this backend.

    The backends agree, so one that became another in silence would turn no comparison red.
    """
    ran = Counter()

    def counting(function, name_of):
        def counted(*args, **settings):
            ran[name_of(args)] += 1
            return function(*args, **settings)

        return counted

    def counting_flex(getter):
        return lambda *device: counting(getter(*device), lambda args: "flex")

    with pytest.MonkeyPatch.context() as patch:
        for plan in (EncodeState, MaskedState):  # by class: a probe's subclass has its own backend
            patch.setattr(plan, "attend", counting(plan.attend, lambda args: type(args[0])))
        flex = "compiled_flex_attention" if compiled else "_eager_flex"
        patch.setattr(kernels, flex, counting_flex(getattr(kernels, flex)))
        sdpa = kernels.scaled_dot_product_attention
        patch.setattr(kernels, "scaled_dot_product_attention", counting(sdpa, lambda args: "sdpa"))
        with FlexAttentionWrapper(model, backend, compiled=compiled).patch_model(mask_mod) as found:
            yield found
    layers = ran[EncodeState] + ran[MaskedState]
    assert layers > 0 and layers % model.config.num_hidden_layers == 0, layers
    for kernel in ("flex", "sdpa"):
        assert ran[kernel] == (layers if kernel == backend else 0), (backend, ran)


def capped(model):
    return getattr(model.config, "attn_logit_softcapping", None) is not None


def backends(model):
    """Those a model can have: sdpa has no soft cap."""
    return ("flex", "eager") if capped(model) else ("flex", "sdpa", "eager")


class Recorder:
    """A reduction that keeps the logits it is given."""

    def __init__(self, reduction=only_stream):
        self.reduction = reduction
        self.logits = []

    def __call__(self, logits, weights):
        fused = self.reduction(logits, weights)
        self.logits.append(fused.clone())  # a recorded step writes where it wrote before
        return fused


class StopAt(StopRule):
    """Ends an answer at these tokens, which are no part of it."""

    def __init__(self, tokens):
        self.tokens = torch.tensor(sorted(tokens))

    def __call__(self, tokens, seen):
        stops = torch.isin(tokens, self.tokens.to(tokens.device))
        return stops, ~stops, seen


def make_engine(wrapper, **settings):
    return Engine(wrapper.model, TinyTokenizer(), wrapper, **settings)


def make_request(
    streams, fusion=None, reduce=only_stream, steps=STEPS, prefix=PREFIX, stop=None, **more
):
    """A request that goes on to the limit, or ends at the tokens ``stop``, or by that rule."""
    if not isinstance(stop, StopRule):
        stop = StopAt(stop) if stop else NeverStop()
    return Request(
        tuple(prefix),
        streams,
        fusion or Fusion(),
        reduce,
        max_new_tokens=steps,
        stop=stop,
        **more,
    )


def tokens_of(batches, stop=()):
    """The token ids of each question, in order, without those that ended an answer."""
    found = {index: answer.token_ids for batch in batches for index, answer in batch}
    kept = [found[index] for index in range(len(found))]
    return [ids[:-1] if ids and ids[-1] in stop else ids for ids in kept]


def answer(engine, streams, fusion=None, reduce=only_stream, batch_size=None, stop=(), **more):
    """(token ids of each question, in order)."""
    request = make_request(streams, fusion, reduce, stop=stop, **more)
    return tokens_of(engine.generate(request, batch_size=batch_size), stop)


def fused_logits(
    model,
    q,
    positions,
    fusion=None,
    backend=None,
    prefix=PREFIX,
    steps=STEPS,
    compiled=False,
):
    """The engine's tokens, and its logits at each step [steps, V].

    The backend, where the test is not about it, is the first that pads.
    """
    with attending(model, backend or backends(model)[1], compiled=compiled) as wrapper:
        recorder = Recorder()
        streams = [attention_streams(q, len(prefix), positions)]
        [tokens] = answer(
            make_engine(wrapper), streams, fusion, recorder, steps=steps, prefix=prefix
        )
    return tokens, torch.cat(recorder.logits)


def oracle_logits(oracle, model, q, tokens, *settings, prefix=PREFIX, **more):
    """The oracle's logits for the tokens after the tail and after each generated token."""
    fused = [*q.tail, *tokens[:-1]]
    return oracle(model, prefix, q.segments, fused, *settings, **more)[len(q.tail) - 1 :]


def distance(a, b):
    return (a - b).abs().max().item()


MIXED_TAILS = [TAIL, TAIL[-1:], TAIL[1:], TAIL, TAIL[-1:], TAIL, TAIL[1:]]

QUESTIONS = [
    question(seed=seed, lengths=lengths, tail=tail)
    for seed, (lengths, tail) in enumerate(
        zip(
            [
                (6, 1, 11, 4, 16),
                (3, 3, 3, 3, 3),
                (1, 1, 1, 1, 2),
                (20, 5, 9, 1, 7),
                (2, 9, 9, 9, 9),
                (5, 6, 7, 8, 9),
                (14, 13, 12, 11, 10),
            ],
            MIXED_TAILS,
            strict=True,
        )
    )
]


def joined(question):
    """A question in the layout ``concat``: separators between its segments, and no tail."""
    ends = itertools.accumulate(len(segment) + 1 for segment in question.segments[:-1])
    return SplitQuestion(question.segments, (), tuple((end - 1, 5) for end in ends))


STREAMS = {
    "attention": (only_stream, lambda q: attention_streams(q, len(PREFIX), "exact")),
    "concat": (only_stream, lambda q: attention_streams(joined(q), len(PREFIX), "sequential")),
    "logits": (average_logits, lambda q: logit_streams(q, len(PREFIX))),
}


def small_memory(streams):
    """What encodes, on a machine whose memory holds so many streams."""

    def encode(forward, asked, *args, **settings):
        if len(asked) > streams:
            raise torch.OutOfMemoryError("injected")
        return encode_streams(forward, asked, *args, **settings)

    return encode
