"""benchmark/gpu.py's rows on a CPU, with a small shape: that each runs, and what it says."""

import csv
import re
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from small import INSTRUCTION, QUESTIONS
from writing import write

from self_ensemble.data.datasets.webqa import WebQADataset

FOLDER = Path(__file__).parents[2] / "benchmark"


class Event:
    """A CUDA event's stand-in."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import gpu
    import measure

    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure, "SIDE", 64)
    monkeypatch.setattr(measure, "NUMBERS", 1000)
    monkeypatch.setattr(gpu, "SHAPES", {"1b": (128, 2, 8, 64), "3b": (128, 2, 8, 96)})
    monkeypatch.setattr(gpu, "VOCABULARY", 300)
    monkeypatch.setattr(gpu, "NEW_TOKENS", 2)
    monkeypatch.setattr(gpu, "LEAST", 1)
    monkeypatch.setattr(gpu, "MOST", 6)
    monkeypatch.setattr(gpu, "PREFIX", 10)
    monkeypatch.setattr(gpu, "COUNTS", (1, 2))
    monkeypatch.setattr(gpu, "PREFIXES", (0, 20))
    monkeypatch.setattr(gpu, "STOCK_BATCHES", (5, 10))
    monkeypatch.setattr(gpu, "ENCODED", 6)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    yield gpu
    for name in ("gpu", "measure", "own_case", "first_described", "throughput", "batches"):
        sys.modules.pop(name, None)


def measured(gpu, tmp_path, *argv) -> list[dict]:
    """What the rows say, without the two ceilings."""
    path = tmp_path / "speed.csv"
    gpu.main(gpu.parse_args([*argv, "--attention", "sdpa", "--csv", str(path)]))
    with path.open() as file:
        found = list(csv.DictReader(file))
    return [entry for entry in found if entry["unit"] not in ("TFLOP/s", "TB/s")]


# Not: profile, which needs a GPU, and continuous, which takes minutes.
@pytest.mark.parametrize(
    ("row", "count"),
    [
        ("attention", 2),
        ("avg", 2),
        ("encode", 1),
        ("latency", 2),
        ("paraphrases", 2),
        ("uneven", 1),
        ("ragged", 1),
        ("long", 2),
        ("prefix", 2),
        ("shapes", 2),
        ("stock", 2),
        ("first", 2),
    ],
)
def test_a_row(gpu, row, count, tmp_path):
    found = measured(gpu, tmp_path, "--rows", row, "--batch_sizes", "1,2")
    named = [entry["row"] for entry in found]
    started = sum(name.startswith("start") for name in named)
    assert len(found) == count + started and started == (2 if row == "shapes" else 1), named
    assert all(float(entry["value"]) > 0 for entry in found if entry["unit"] != "ms")


def test_what_is_said_of_answers_that_end(gpu, tmp_path):
    _, found = measured(gpu, tmp_path, "--rows", "ragged", "--batch_sizes", "8")
    said = re.fullmatch(
        r"8 at a time, (\d\.\d) tokens an answer, (\d+)% of the decoded rows of use, \d+ tokens/s",
        found["note"],
    )
    assert 1 <= float(said[1]) <= 2 and 50 <= int(said[2]) <= 100, found["note"]


def test_a_file_of_questions(gpu, small, tmp_path):
    path = tmp_path / "questions.parquet"
    pd.DataFrame({"question": [row["question"] for row in QUESTIONS]}).to_parquet(path)
    argv = ["--rows", "run", "--model", str(small.folder), "--questions", str(path)]
    [_, found] = measured(gpu, tmp_path, *argv)
    assert found["note"].startswith(f"{len(QUESTIONS)} questions")


def test_ones_own_case(gpu, small, tmp_path):
    argv = ["--model", str(small.folder), "--dataset", str(small.questions)]
    more = ["--instruction", INSTRUCTION, "--max_samples", "5", "--num_paraphrases", "4"]
    [found] = measured(gpu, tmp_path, *argv, *more)
    assert float(found["value"]) > 0
    shares = re.findall(r"(arithmetic|memory bandwidth|launches and host) (-?\d+)%", found["note"])
    assert len(shares) == 3 and abs(sum(int(share) for _, share in shares) - 100) <= 2
    assert re.search(r"; \d+% of the decoded rows", found["note"])


def test_a_dataset_by_its_name(gpu, small, tmp_path, monkeypatch):
    """As the generating scripts take it, with the paraphrases that its model has made."""
    datasets = pytest.importorskip("datasets")
    rows = [{key: row[key] for key in ("question", "answers")} for row in QUESTIONS]
    rows = [{"url": f"http://a/{index}", **row} for index, row in enumerate(rows)]
    splits = {name: datasets.Dataset.from_list(rows) for name in ("train", "test")}
    fetch = "self_ensemble.data.datasets.webqa.fetch"
    monkeypatch.setattr(fetch, lambda *_, **__: splits)  # from a hub
    monkeypatch.chdir(tmp_path)
    made = [
        {"uuid": r.uuid, "question": r.question, "paraphrases": [f"{r.question}{i}" for i in "123"]}
        for r in WebQADataset().load(needs_few_shot=False).records
    ]
    folder = tmp_path / "data" / "webqa" / small.folder.name
    folder.mkdir(parents=True)
    write(folder / "paraphrases.jsonl", made)

    argv = ["--model", str(small.folder), "--dataset", "webqa", "--num_paraphrases", "3"]
    [found] = measured(gpu, tmp_path, *argv)
    assert float(found["value"]) > 0


def test_rows_are_appended_to_one_table(gpu, tmp_path):
    for _ in range(2):
        found = measured(gpu, tmp_path, "--rows", "uneven", "--batch_sizes", "2")
    assert [entry["row"] for entry in found].count("attention fusion, 10 to 18 tokens") == 2
