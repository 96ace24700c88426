"""A column of a dataset's file with the confidence of each paraphrase."""

import json
import math
from pathlib import Path
from typing import Any

from self_ensemble.data import dataset_names
from self_ensemble.data.records import indexs_taken
from self_ensemble.data.result_files import fingerprint, read_results
from self_ensemble.experiment.config import QuestionConfig
from self_ensemble.experiment.questions import Questions
from self_ensemble.system.errors import UserError


def read_confidences(
    config: QuestionConfig, column: str, questions: Questions
) -> tuple[list[list[float]], str]:
    """The column --confidence of the dataset's file, and its fingerprint.

    A number for each paraphrase that a question of `questions.records` has, and no more: of one
    with fewer than were asked for, the numbers of these (see `select_paraphrases`).

    Raises:
        UserError: no such column, or not a list of enough usable numbers for every question.
    """
    if config.dataset in dataset_names():
        raise UserError(
            f"--confidence: {config.dataset} has no such column; give a file with --dataset"
        )
    options = config.options
    if options.group_by is not None or options.where or not Path(config.dataset).exists():
        raise UserError(
            "--confidence: its column is read of a file with a row a question, without --group_by "
            "and --where"
        )
    table = read_results(config.dataset)
    if column not in table:
        raise UserError(
            f"--confidence: {config.dataset} has no column {column!r}; "
            f"it has {', '.join(table.columns)}"
        )
    cells = table[column].tolist()
    # Rows and records go in the same order. Some were left out, behind --max_samples or by --fewer.
    cell_of = dict(zip((r.uuid for r in questions.dataset.records), cells, strict=False))
    indexs = questions.indexs or range(questions.num_paraphrases)
    rows = []
    for record in questions.records:
        where = f"--confidence: {column} of question {record.uuid}"
        cell = cell_of[record.uuid]
        chosen = indexs_taken(indexs, len(record.paraphrases))
        given = _json_list(cell) if isinstance(cell, str) else cell
        if not isinstance(given, list) or len(given) <= max(chosen):
            raise UserError(
                f"{where} is no list of {max(chosen) + 1} or more numbers: {str(cell)[:80]}"
            )
        row = [given[index] for index in chosen]
        if not all(isinstance(u, int | float) and 0 <= u < math.inf for u in row) or not any(row):
            raise UserError(f"{where} must hold numbers of 0 or more, not all 0: {row}")
        rows.append([u / max(row) for u in row])  # only their ratios count, and float32 is small
    return rows, fingerprint([str(cell) for cell in cells])


def _json_list(cell: str) -> Any:
    """A list as a CSV has it; None for what is no JSON."""
    try:
        return json.loads(cell)
    except ValueError:
        return None
