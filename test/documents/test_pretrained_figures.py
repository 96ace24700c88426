"""README's table of pretrained models is the one that the committed results give."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmark"))
documents, table = map(import_module, ("pretrained_documents", "pretrained_table"))
ROWS = table.read_csv(documents.TABLE)


@pytest.mark.parametrize("page", ["README.md", "docs/README.zh-CN.md"])
def test_readme_has_the_figures_of_the_csv(page):
    """Every line; what a row is called may be translated."""
    text = (ROOT / page).read_text(encoding="utf-8")
    _, _, *lines = documents.readme_table(ROWS).splitlines()
    assert lines
    for line in lines:
        _, _, figures = line.removeprefix("| ").partition(" | ")
        assert f"| {figures}" in text, line


def test_evidence_has_the_tables_of_the_csv():
    text = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    for prompt, of_set in dict.fromkeys((row["prompt"], row["set"]) for row in ROWS):
        for block in documents.evidence_tables(ROWS, prompt, of_set).split("\n\n")[1::2]:
            assert block in text, (prompt, of_set)


def test_the_csv_holds_aggregates_alone():
    """Nothing of the questions: no text but names, and a hexadecimal number."""
    names = {"prompt", "set", "model", "method", "result", "baseline"}
    for row in ROWS:
        for column in table.COLUMNS:
            if column not in names and row[column]:
                digits = row[column].partition(":")[2] or row[column]
                float(digits) if column != "right_of_first" else int(digits, 16)
