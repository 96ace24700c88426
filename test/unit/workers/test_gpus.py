"""How many GPUs each worker takes, and how many workers that makes; without any of them."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model
from self_ensemble.system.errors import UserError
from self_ensemble.workers import loading
from self_ensemble.workers.config import WorkersConfig
from self_ensemble.workers.pool import Place


@pytest.fixture
def started(monkeypatch):
    """(number of workers, assignment, place) of the pool that is started on five GPUs, of which
    each worker needs two."""

    def start(number):
        made = []

        class Pool:
            def __init__(self, tokenizer, config, number, assignment, place):
                made.append((number, assignment, place))

            def end(self):
                pass

        @contextmanager
        def connected(address, verbose):
            yield SimpleNamespace(is_local=True, gpus=5, cpus=8)

        monkeypatch.setattr(loading, "WorkerPool", Pool)
        monkeypatch.setattr(loading, "connected", connected)
        monkeypatch.setattr(loading, "gpus_each", lambda source: 2)
        source = replace(find_model(ModelConfig(device="cpu")), device=torch.device("cuda", 0))
        with loading.worker_pool(source, ModelConfig(), WorkersConfig(number=number)):
            return made[0]

    return start


@pytest.mark.parametrize(("asked", "number"), [("auto", 2), (1, 1), (2, 2)])
def test_each_worker_takes_what_it_needs(started, asked, number):
    found, assignment, place = started(asked)
    assert (found, place) == (number, Place(gpus=2, cpus=1))
    assert (assignment.model.device, assignment.model.gpus_per_worker) == ("cuda", 2)


def test_more_than_there_are(started):
    with pytest.raises(UserError, match="5 GPUs, and each worker takes 2 of them; take 2 workers"):
        started(3)
