"""A model whose layers are on two devices answers what it answers on one."""

import pytest
import torch
from fused import make_engine, make_request, question
from test_places import FUSIONS, STREAMS, answers, check_same, some_questions
from tiny import tiny_model
from two_devices import FIRST, SECOND, spread_model, two_devices

from self_ensemble.attention.patching import FlexAttentionWrapper


def on_one(name, ask, backend):
    with FlexAttentionWrapper(tiny_model(name), backend, compiled=False) as wrapper:
        return ask(make_engine(wrapper))


def on_two(name, ask, backend, gpus=(0, 0, 1, 1)):
    with two_devices():
        model = spread_model(tiny_model(name), gpus)
        with FlexAttentionWrapper(model, backend, compiled=False) as wrapper:
            return ask(make_engine(wrapper))


@pytest.mark.parametrize("kind", STREAMS)
def test_answers_are_those_of_one_device(kind):
    reduce, streams_of = STREAMS[kind]
    streams = [streams_of(each) for each in some_questions(5, fewest=2)]

    def ask(engine):
        return answers(engine, streams, batch_size=2, reduce=reduce)[0]

    check_same(on_two("llama", ask, "sdpa"), on_one("llama", ask, "sdpa"))
