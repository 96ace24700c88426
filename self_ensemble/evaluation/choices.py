"""Files of `--task choices`: the log-likelihoods of each question's choices, and their scores.

Such a file has the columns `choices` (texts) and `choice_sum`, `choice_mean`, `choice_bytes`: of
each choice the log-likelihood, the same a token, and the same a byte. Under a norm the choice with
the highest is taken, of equal ones the earlier. A choice is right where it is one of the answers,
as a text: normalised, the choice "A" would be an article, and nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from self_ensemble.data.cells import show
from self_ensemble.data.choices import NORMS, choose, is_tied
from self_ensemble.evaluation.calibration import (
    Bin,
    brier_score,
    equal_mass_bins,
    equal_width_bins,
    expected_calibration_error,
    negative_log_likelihood,
    softmax,
)
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # numpy and pandas come after parsing: --help stays quick
    import numpy as np
    from pandas import DataFrame

COLUMNS = {norm: f"choice_{norm}" for norm in NORMS}


@dataclass(frozen=True)
class ChoiceRow:
    """What one row of a file says: of a question, or of one of its paraphrases.

    choices: [C] texts.
    scores: norm to [C] log-likelihoods.
    right: [C] whether each choice is right; one at least is.
    """

    choices: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]
    right: tuple[bool, ...]

    def chosen(self, norm: str) -> int:
        return choose(self.scores[norm])

    def is_right(self, norm: str) -> bool:
        return self.right[self.chosen(norm)]

    def probabilities(self, norm: str) -> "np.ndarray":
        return softmax(self.scores[norm])


@dataclass(frozen=True)
class Calibration:
    """How far probabilities say how often choices are right, see `calibration`.

    confidence: the mean probability of the chosen one.
    ece, adaptive_ece: the expected calibration error by bins of equal width, and of equal mass.
    brier, nll: means over answers.
    tied: answers whose highest log-likelihood more than one choice has.
    bins: of equal width, for a reliability diagram.
    """

    confidence: float
    ece: float
    adaptive_ece: float
    brier: float
    nll: float
    tied: int
    bins: list[Bin]


def has_choices(columns: Collection[str]) -> bool:
    """Whether choices were scored; a column `choices` alone may stand beside generated answers."""
    return any(column in columns for column in COLUMNS.values())


def choice_rows(frame: "DataFrame", answers: Sequence[Sequence[str]], path: str) -> list[ChoiceRow]:
    """Every row of a file, checked.

    answers: of each row.

    Raises:
        UserError: a list is missing, holds what is no number, is not as long as its choices, or
            none of the choices is right; with the row.
    """
    missing = [f"`{name}`" for name in ("choices", *COLUMNS.values()) if name not in frame.columns]
    if missing:
        raise UserError(f"{path} has scores of choices, but no column {' and '.join(missing)}")
    lists = {norm: frame[column].tolist() for norm, column in COLUMNS.items()}
    rows = []
    for i, choices in enumerate(frame["choices"].tolist()):
        where = f"{path}, row {i + 1}"
        if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
            raise UserError(f"{where}: choices is not a list of texts: {show(choices)}")
        if not choices:
            raise UserError(f"{where}: choices is empty")
        scores = {
            norm: _checked_scores(cells[i], choices, f"{where}: {COLUMNS[norm]}")
            for norm, cells in lists.items()
        }
        right = tuple(choice in answers[i] for choice in choices)
        if not any(right):
            raise UserError(
                f"{where}: none of its choices is a right answer: {show(list(answers[i]))}"
            )
        rows.append(ChoiceRow(tuple(choices), scores, right))
    return rows


def _checked_scores(cell: Any, choices: Sequence[str], what: str) -> tuple[float, ...]:
    is_number = [isinstance(c, (int, float)) and not isinstance(c, bool) for c in _listed(cell)]
    if not isinstance(cell, list) or not all(is_number):
        raise UserError(f"{what} is not a list of numbers: {show(cell)}")
    if len(cell) != len(choices):
        raise UserError(f"{what} has {len(cell)} numbers for {len(choices)} choices")
    for value, choice in zip(cell, choices, strict=True):
        if not isfinite(value):
            raise UserError(f"{what} of {show(choice)} is {value}, which is no log-likelihood")
    return tuple(float(value) for value in cell)


def _listed(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else []


def norm_of(
    rows: Sequence[ChoiceRow],
    predictions: Sequence[str] | None,
    path: str,
    *,
    first: str | None = None,
) -> str:
    """The norm by which the predictions of a file were chosen: the first by which all of them are.

    predictions: as they stand in the file; None where it has none, and nothing contradicts a norm.
    first: the norm that is tried before others.

    Raises:
        UserError: there is none.
    """
    norms = sorted(NORMS, key=lambda norm: norm != first)
    if predictions is None:
        return norms[0]
    furthest = 0
    for norm in norms:
        pairs = enumerate(zip(rows, predictions, strict=True))
        odd = next((i for i, (r, text) in pairs if r.choices[r.chosen(norm)] != text), None)
        if odd is None:
            return norm
        furthest = max(furthest, odd)
    raise UserError(
        f"{path}, row {furthest + 1}: the prediction {show(predictions[furthest])} is not what "
        f"{', '.join(COLUMNS.values())} choose; --choice_norm says by which to score"
    )


def calibrate(rows: Sequence[ChoiceRow], norm: str) -> Calibration:
    """How far the probabilities under a norm can be believed, over all rows."""
    import numpy as np

    probabilities = [row.probabilities(norm) for row in rows]
    right = [np.array(row.right) for row in rows]
    confidences = np.array([p.max() for p in probabilities])
    hits = np.array([row.is_right(norm) for row in rows])
    bins = equal_width_bins(confidences, hits)
    pairs = list(zip(probabilities, right, strict=True))
    losses = [
        negative_log_likelihood(row.scores[norm], each)
        for row, each in zip(rows, right, strict=True)
    ]
    return Calibration(
        confidence=float(confidences.mean()),
        ece=expected_calibration_error(bins),
        adaptive_ece=expected_calibration_error(equal_mass_bins(confidences, hits)),
        brier=float(np.mean([brier_score(*pair) for pair in pairs])),
        nll=float(np.mean(losses)),
        tied=sum(is_tied(row.scores[norm]) for row in rows),
        bins=bins,
    )
