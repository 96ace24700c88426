"""A run that is gone on with: what its manifest tells of who computed."""

from types import SimpleNamespace

import pytest

from self_ensemble.experiment.journal import Journal
from self_ensemble.experiment.resumable import ResumableRun
from self_ensemble.generation.stats import Stats

REQUEST = SimpleNamespace(questions=range(4), prefix=(), max_new_tokens=1)
ENTRIES = SimpleNamespace(write=lambda index, answer: answer, read=lambda index, entry: entry)
ENGINE = SimpleNamespace(schedule=lambda questions, size, indices: [[i] for i in indices])


class Run(ResumableRun):
    verb = "answered"
    finished_file = None

    def is_finished(self):
        return False

    def open_journal(self):
        return Journal.read(self.stem) or Journal(self.stem, self.identity)


class Workers:
    """Batches, and by each of them the devices of all workers that there were."""

    def __init__(self, batches, devices):
        self.stats, self.max_batch_size, self.computed_by = Stats(), None, {}
        self.environment = {}
        self._batches, self._devices = iter(batches), iter(devices)

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._batches)
        self.environment = {"device": next(self._devices), "attention": "not asked"}
        return [(index, "an answer") for index in batch]


@pytest.fixture
def run(tmp_path):
    """A run of so many batches, and what its manifest would say."""

    def run(begun_with, *devices):
        made = Run(tmp_path / "avg-5", {}, num_questions=4, overwrite=False)
        with made.claimed():
            made.begin(ENGINE, {"device": begun_with, "batch_size": "auto"})

            def compute(request, *, batches, **settings):
                return Workers(batches[: len(devices)], devices)

            for _ in made.answer_pass(
                "answers", REQUEST, ENTRIES, compute=compute, batch_size=None, unit="questions"
            ):
                pass
        return made.environment | made.begun_with()

    return run


def test_a_worker_that_comes_in_late(run):
    found = run("A", "A", ["A", "B"], ["A", "B"])
    assert found == {"device": ["A", "B"], "batch_size": "auto"}


def test_the_same_workers_again(run):
    """Late, or from the beginning, in the process before: nothing was computed otherwise."""
    run("A", "A", ["A", "B"])
    assert run("A", ["A", "B"]) == {"device": ["A", "B"], "batch_size": "auto"}
    assert run(["A", "B"], ["A", "B"]) == {"device": ["A", "B"], "batch_size": "auto"}


def test_other_workers_before(run):
    run("A", "A")
    run("A", ["A", "B"])
    assert run("C", "C")["begun_with"] == [
        {"device": "A", "batch_size": "auto"},
        {"device": ["A", "B"], "batch_size": "auto"},
    ]
