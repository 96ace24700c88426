"""What a question costs the driver in memory, so that a million of them fit; docs/scale.md.

Counted are Python's own allocations, at two numbers of questions; what does not grow cancels out.
"""

import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from self_ensemble.data.prompts import prompt_template
from self_ensemble.data.question_files import load_question_file
from self_ensemble.data.records import select_paraphrases
from self_ensemble.data.result_files import write_result_tables
from self_ensemble.data.result_tables import schema_with
from self_ensemble.experiment.journal import Journal
from self_ensemble.experiment.rows import ANSWER_COLUMNS, ResultRows
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.methods.attention_fusion import AttentionFusion

FEW, MANY = 500, 2500
NUM, TOKENS = 5, 8


@pytest.fixture(scope="module")
def write_questions():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmark"))
        import scale

        yield scale.write_questions
    sys.modules.pop("scale")


def bytes_a_question(work) -> float:
    """How much the most that `work(count)` holds at a time grows by a question."""
    peaks = []
    work(FEW)  # imports and caches
    for count in (FEW, MANY):
        tracemalloc.start()
        kept = work(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        del kept
    return (peaks[1] - peaks[0]) / (MANY - FEW)


def test_reading(tmp_path, write_questions):
    """Of 700 bytes of text, in six strings and more."""
    for count in (FEW, MANY):
        write_questions(tmp_path / f"{count}.jsonl", count)

    def read(count):
        dataset = load_question_file(tmp_path / f"{count}.jsonl")
        records = select_paraphrases(dataset.records, num_paraphrases=NUM, indexs=None)
        assert all(a is b for a, b in zip(records, dataset.records, strict=True))
        return dataset, records

    assert 1000 < bytes_a_question(read) < 3500


def test_planning(tmp_path, small, write_questions):
    """Of about 160 tokens; as tuples of numbers they would take 6,000 bytes."""
    write_questions(tmp_path / "q.jsonl", MANY)
    records = load_question_file(tmp_path / "q.jsonl").records
    questions = [record.paraphrases for record in records]
    engine = SimpleNamespace(
        tokenizer=small.tokenizer, config=small.model.config, device=torch.device("cpu")
    )

    def plan(count):
        method = AttentionFusion(positions="exact")
        template = prompt_template("Say what is asked.", ())
        return method.request(engine, template, questions[:count], GenerationConfig())

    assert 200 < bytes_a_question(plan) < 1500


def test_reading_the_journal(tmp_path):
    """The answers themselves stay on the disk: they alone would take 700 bytes."""
    for count in (FEW, MANY):
        journal = Journal(tmp_path / str(count), {})
        for begin in range(0, count, 100):
            batch = list(range(begin, begin + 100))
            answers = [[[i + 300] * TOKENS, [-1 / (i + k + 2) for k in range(TOKENS)], False]
                       for i, k in zip(batch, batch, strict=True)]  # fmt: skip
            journal.add("pass", batch, answers, {})

    def read(count):
        journal = Journal.read(tmp_path / str(count))
        assert sum(map(len, journal.kept("pass"))) == count
        return journal

    assert bytes_a_question(read) < 200


@pytest.mark.parametrize("part_rows", [None, 200])
def test_writing(tmp_path, write_questions, part_rows, monkeypatch):
    """Rows are made, and become CSV, some at a time."""
    monkeypatch.setattr("self_ensemble.data.result_tables.ROWS_AT_ONCE", 100)
    write_questions(tmp_path / "q.jsonl", MANY)
    records = load_question_file(tmp_path / "q.jsonl").records
    found = [((f"city {i}", f" city {i}\n", -0.5, False),) for i in range(MANY)]

    def write(count):
        rows = ResultRows(records[:count], found[:count], ANSWER_COLUMNS, False, False)
        write_result_tables(
            tmp_path / f"{count}",
            rows.tables(100),
            schema_with(None, rows.names),
            {"identity": {}, "num_questions": count},
            part_rows=part_rows and [part_rows] * (count // part_rows) + [count % part_rows or 0],
        )

    assert bytes_a_question(write) < 200
