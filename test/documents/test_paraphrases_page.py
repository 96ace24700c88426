"""docs/paraphrases.md has the figures that the benchmark printed, and all checks."""

import sys
from importlib import import_module
from pathlib import Path

from self_ensemble.paraphrasing.quality_filter import CHECKS, THRESHOLDS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmark"))
benchmark = import_module("paraphrase_filter")
PAGE = (ROOT / "docs" / "paraphrases.md").read_text(encoding="utf-8")


def test_the_table_is_the_one_of_the_csv():
    table = benchmark.read_table(ROOT / "benchmark" / "paraphrase_filter.csv")
    assert benchmark.markdown(table) in PAGE
    assert {line[0] for line in table[2:-3]} <= set(CHECKS)


def test_every_check_and_threshold_is_told():
    told = PAGE.partition("## What it finds")[0]
    assert all(f"`{check}`" in told for check in CHECKS)
    assert f"less than {THRESHOLDS.kept} of the weight" in told
    assert f"explains less than {THRESHOLDS.explained} of the question" in told


def test_thresholds_are_chosen_on_other_questions():
    from self_ensemble.paraphrasing.rejections import Judgement

    rows = [
        {"question": f"q{at}?", "paraphrase": f"which q{at}?", "answers": (), "label": "good"}
        for at in range(40)
    ]
    judgements = [Judgement(0.3 + at / 100) for at in range(40)]
    assert benchmark.chosen_threshold(rows, judgements) == 0.3
    _, chosen = benchmark.out_of_fold(rows, judgements)
    # One of the folds holds the lowest, which its own threshold does not know.
    assert sorted(set(chosen)) == [0.3, 0.31]
