"""A pool of workers whose Ray is a stand-in: what it counts, and what it does with none left."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from fused import PREFIX, make_request, question
from small import make_tokenizer

from self_ensemble import Ensemble
from self_ensemble.attention.continuations import Continuation
from self_ensemble.attention.fusion import Fusion
from self_ensemble.generation.likelihood import ScoringRequest
from self_ensemble.generation.stats import Stats
from self_ensemble.generation.streams import attention_streams
from self_ensemble.system.errors import UserError
from self_ensemble.workers import loading
from self_ensemble.workers import pool as pools
from self_ensemble.workers.parts import Broken, Failed, Reply
from self_ensemble.workers.pool import Place, WorkerPool
from self_ensemble.workers.worker import Host, Loaded

STREAMS = [attention_streams(question(3, 2, (4, 2, 5)), len(PREFIX), "left") for _ in range(3)]
BATCHES = [[0], [1], [2]]


class StandInRay:
    """Remote calls wait in `calls`, as (actor, method, reference), until a test answers them."""

    exceptions = SimpleNamespace(RayError=OSError, RayTaskError=ArithmeticError)

    def __init__(self):
        self.calls, self.found = [], {}

    def remote(self, worker):
        return SimpleNamespace(options=lambda **settings: SimpleNamespace(remote=self.actor))

    def actor(self, fetch):
        class Actor:
            def __getattr__(actor, method):
                def call(*args, **settings):
                    self.calls.append((actor, method, object()))
                    return self.calls[-1][2]

                return SimpleNamespace(remote=call)

        return Actor()

    def answer(self, method, value, of=None):
        """The oldest call of this method that waits: of an actor, or of any."""
        call = next(c for c in self.calls if c[1] == method and of in (None, c[0]))
        self.calls.remove(call)
        self.found[call[2]] = value

    def wait(self, references, timeout):
        there = [each for each in references if each in self.found][:1]
        return there, [each for each in references if each not in there]

    def get(self, reference):
        return self.found[reference]

    def put(self, value):
        return value

    def kill(self, actor):
        pass


@pytest.fixture
def ray(monkeypatch):
    found = StandInRay()
    monkeypatch.setitem(sys.modules, "ray", found)
    return found


@pytest.fixture
def pool(ray):
    """Two workers that have their models."""
    config = SimpleNamespace(vocab_size=200, max_position_embeddings=4096)
    made = WorkerPool(make_tokenizer(), config, 2, None, Place(gpus=0, cpus=1))
    for _ in range(2):
        ray.answer("where", Host("host", 1))
    for _ in range(2):
        made._step()
    for _ in range(2):
        ray.answer("load", Loaded("cpu", 4096))
    made.wait()
    return made


def reply(tokens):
    return Reply(["an answer"], Stats(decoded_tokens=tokens), None, [])


def fall_silent(pool, ray, slot):
    """A worker dies, and the cluster has no place for it any more."""
    pool._died(slot, "its host is gone")
    slot.is_late = True


def test_what_is_counted_goes_with_its_batch(pool, ray):
    """Two answers come at once. Before the second one is kept, a killed run has not counted it."""
    answering = pool.generate(make_request(STREAMS), batches=BATCHES, batch_size=1)
    pool._hand_out(answering)
    ray.answer("answer", reply(5))
    ray.answer("answer", reply(7))
    assert next(answering) == [(0, "an answer")]
    assert answering.stats.decoded_tokens == 5 and answering.computed_by == {"cpu": 1}
    assert next(answering) == [(1, "an answer")]
    assert answering.stats.decoded_tokens == 12 and answering.computed_by == {"cpu": 2}


def test_workers_that_have_ended(pool, ray):
    """Ray would start another cluster by itself, or a pass wait for ever."""
    answering = pool.generate(make_request(STREAMS), batches=BATCHES)
    pool.end()
    for ask in (
        lambda: pool.generate(make_request(STREAMS), batches=BATCHES),
        lambda: pool.schedule(STREAMS, None),
        lambda: next(answering),
    ):
        with pytest.raises(UserError, match=r"all workers have ended: .* make another Ensemble"):
            ask()


def test_no_worker_but_one_without_a_place(pool, ray, monkeypatch):
    """It is waited for, from the moment on when it is the last hope; then an error says it."""
    first, second = pool._slots
    fall_silent(pool, ray, second)
    second.since -= 2 * pools.LAST_PATIENCE_SECONDS
    first.deaths = pools.RESTARTS
    pool._died(first, "its process was killed or has crashed")
    assert first.is_gone and not second.is_gone
    monkeypatch.setattr(pools, "LAST_PATIENCE_SECONDS", 0)
    with pytest.raises(UserError, match="worker 2 has found no place on the cluster"):
        pool.schedule(STREAMS, None)


def test_the_last_hope_is_waited_for(pool, ray, capsys):
    """A worker that has waited for long is not given up at once when another one dies."""
    first, second = pool._slots
    fall_silent(pool, ray, second)
    second.since -= 2 * pools.LAST_PATIENCE_SECONDS
    pool._died(first, "its host is gone")
    pool._step()
    assert not second.is_gone and "no place" not in capsys.readouterr().err


def test_a_worker_that_comes_again_and_cannot_answer(pool, ray, capsys):
    """A host with other files: what another worker has in hand is not lost by it."""
    answering = pool.generate(make_request(STREAMS), batches=BATCHES, batch_size=1)
    pool._hand_out(answering)
    first, second = (slot.actor for slot in pool._slots)
    ray.answer("answer", Broken("CUDA error"), of=first)
    pool._step()
    ray.answer("where", Host("other", 1))
    pool._step()
    ray.answer("load", Failed("--model: another model than here"))
    pool._step()
    said = "worker 1 cannot answer (--model: another model than here): the run goes on with 1"
    assert said in capsys.readouterr().err
    for _ in BATCHES:
        ray.answer("answer", reply(1), of=second)
        next(answering)
    with pytest.raises(StopIteration):
        next(answering)


def test_a_first_worker_that_cannot_answer_ends_the_run(ray):
    pool = WorkerPool(make_tokenizer(), None, 2, None, Place(gpus=0, cpus=1))
    ray.answer("where", Host("host", 1))
    pool._step()
    ray.answer("load", Failed("--model: too large"))
    with pytest.raises(UserError, match="--model: too large"):
        pool.wait()


def test_a_choice_with_a_token_that_the_model_does_not_know(pool):
    """Of all questions, not only of those that a worker begins with."""
    given = [[Continuation((4,), 1)], [Continuation((200,), 1)], [Continuation((4, 5), 2)]]
    request = ScoringRequest(PREFIX, STREAMS, continuations=given)
    with pytest.raises(UserError, match=r"the choices hold the token .* \(200\), beyond"):
        pool.score(request, batches=BATCHES)


def test_an_ensemble_whose_workers_cannot_begin(monkeypatch):
    """They have ended before the error is told: a notebook keeps its traceback, and all in it."""
    ended = []

    @contextmanager
    def worker_pool(*args):
        def wait():
            raise UserError("another model than here")

        try:
            yield SimpleNamespace(wait=wait)
        finally:
            ended.append(True)

    monkeypatch.setattr(loading, "worker_pool", worker_pool)
    with pytest.raises(UserError, match="another model") as error:
        Ensemble.from_pretrained("demo", device="cpu", workers=2)
    assert ended and error.tb is not None


# ---- what they compute with ---------------------------------------------------------------------


def said(device, torch="2"):
    return {"device": device, "versions": {"torch": torch}}


def ask_environment(pool):
    return pool.environment(Fusion(), asked="auto")


@pytest.mark.parametrize("devices", [("A", "B"), ("B", "A")])
def test_what_differs_is_in_an_order_of_its_own(pool, ray, monkeypatch, devices):
    """However workers are placed: a run that goes on has begun with the same."""
    wait = ray.wait

    def answering(references, timeout):
        for device in devices:
            if any(call[1] == "environment" for call in ray.calls):
                ray.answer("environment", said(device, torch=f"{device}1"))
        return wait(references, timeout)

    monkeypatch.setattr(ray, "wait", answering)
    assert ask_environment(pool) == {
        "device": ["A", "B"],
        "versions": [{"torch": "A1"}, {"torch": "B1"}],
        "workers": 2,
    }


def test_what_a_late_worker_computes_with(pool, ray, monkeypatch):
    """Another GPU and another version come in after the run has begun; and where they die, and come
    again as a third kind, all that there were are told."""
    second = pool._slots[1]
    fall_silent(pool, ray, second)
    wait = ray.wait

    def answering(references, timeout):
        if any(call[1] == "environment" for call in ray.calls):
            ray.answer("environment", said("B"))
        return wait(references, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(ray, "wait", answering)
        begun = ask_environment(pool)
    assert begun == said("B") | {"workers": 2}
    answering = pool.generate(make_request(STREAMS), batches=BATCHES, batch_size=1)
    assert answering.environment == begun
    for device, torch in (("A", "1"), ("C", "2")):
        ray.answer("where", Host("host", 2))
        pool._step()
        ray.answer("load", Loaded(device, 4096))
        pool._step()
        ray.answer("environment", said(device, torch))
        pool._step()
        assert second.is_ready
        pool._died(second, "its host is gone")
    assert answering.environment == {
        "device": ["A", "B", "C"],
        "versions": [{"torch": "1"}, {"torch": "2"}],
        "workers": 2,
    }
