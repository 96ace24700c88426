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

    def start(number, hosts=((5, 8),)):
        made = []

        class Pool:
            def __init__(self, tokenizer, config, number, assignment, place):
                made.append((number, assignment, place))

            def end(self):
                pass

        @contextmanager
        def connected(address, verbose):
            yield SimpleNamespace(is_local=True, hosts=hosts)

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


def test_a_worker_is_on_one_host(started):
    hosts = ((3, 16), (3, 16))
    assert started("auto", hosts)[0] == 2
    with pytest.raises(UserError, match="6 GPUs, and each worker takes 2 of a host's; take 2"):
        started(3, hosts)


@pytest.mark.parametrize(
    ("cpus", "number", "share"),
    [([8], 2, 4), ([2], 3, 1), ([16, 16], 1, 16), ([16, 16, 16], 2, 16), ([16, 16], 3, 8)],
)
def test_each_has_an_equal_share_of_a_host(cpus, number, share):
    assert loading.equal_share(cpus, number) == share


def test_more_than_there_are(started):
    with pytest.raises(UserError, match="5 GPUs, and each worker takes 2 of a host's; take 2 w"):
        started(3)
