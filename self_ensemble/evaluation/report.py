"""The report on files of predictions: what score.py prints, draws and writes as JSON.

    report = make_report(["avg-5.feather", "vote-5.feather"], "avg-5.feather")
    print(render_report(report))

Accuracies and differences in it are fractions, from 0 to 1.
"""

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from self_ensemble.data.answers import normalize_answer
from self_ensemble.evaluation.comparison import adjust_p_values, compare
from self_ensemble.evaluation.scored import MATCHERS, ScoredPredictions, score_predictions
from self_ensemble.evaluation.statistics import bootstrap_interval, wilson_interval

if TYPE_CHECKING:  # numpy comes after parsing: --help stays quick
    import numpy as np


def make_report(
    paths: Sequence[str],
    baseline_path: str | None = None,
    *,
    match: str = "exact",
    lemmas: str | None = None,
    spacy_model: str | None = None,
    by: str | None = None,
) -> dict[str, Any]:
    """Everything that is printed, in JSON types: what --json shows and the tables are made of.

    Args:
        paths: files of predictions, see `score_predictions`.
        baseline_path: the file that every other one is compared with.
        match, lemmas, spacy_model, by: as of `score_predictions`; the baseline is not split.

    Raises:
        UserError: a file cannot be read, or two cannot be compared.
    """
    score = partial(score_predictions, match=match, lemmas=lemmas, spacy_model=spacy_model)
    files = [score(path, by=by) for path in paths]
    baseline = None if baseline_path is None else score(baseline_path)
    return report_on(files, baseline, by=by)


def report_on(
    files: Sequence[ScoredPredictions], baseline: ScoredPredictions | None, *, by: str | None = None
) -> dict[str, Any]:
    """The report on files that are scored already, see `make_report`."""
    report: dict[str, Any] = {"baseline": None, "by": by, "files": [], "notes": []}
    for scored in files:
        found = summarize(scored) | {"comparison": _comparison(scored, baseline)}
        found["by"] = [
            {"value": value, **summarize(part), "comparison": _part_comparison(part, baseline)}
            for value, part in _parts(scored)
        ]
        report["files"].append(found)
        report["notes"] += _coverage_notes(found)
    if baseline is not None:
        if baseline.per_prompt:
            note = f"{baseline.path} has a row a paraphrase: the baseline is its paraphrase 0"
            report["notes"].insert(0, note)
        report["baseline"] = {"file": baseline.path, "questions": len(baseline.right)}
        report["baseline"] |= {"paraphrase": 0 if baseline.per_prompt else None}
        first = baseline.first_paraphrase() if baseline.per_prompt else baseline
        report["baseline"] |= _fraction(first.right[:, 0])
        report["baseline"] |= {"scores": _scores(first), "counts": _counts(first)}
    adjust_p_values([found["comparison"] for found in report["files"]])
    adjust_p_values([part["comparison"] for found in report["files"] for part in found["by"]])
    return report


def _comparison(
    scored: ScoredPredictions, baseline: ScoredPredictions | None
) -> dict[str, Any] | None:
    """None where there is no baseline, and where the file is the baseline itself."""
    if baseline is None:
        return None
    is_baseline = os.path.realpath(scored.path) == os.path.realpath(baseline.path)
    return None if is_baseline and not baseline.per_prompt else compare(scored, baseline)


def _part_comparison(
    part: ScoredPredictions, baseline: ScoredPredictions | None
) -> dict[str, Any] | None:
    """As `_comparison`, but a part may well have no question that the baseline has."""
    shared = baseline is not None and set(part.uuids or ()) & set(baseline.uuids or ())
    return _comparison(part, baseline) if shared else None


def _parts(scored: ScoredPredictions) -> list[tuple[str, ScoredPredictions]]:
    """The questions of each value of the column, by value."""
    places: dict[str, list[int]] = {}
    for i, value in enumerate(scored.groups or ()):
        places.setdefault(value, []).append(i)
    return [(value, scored.take(places[value])) for value in sorted(places)]


def _coverage_notes(found: dict[str, Any]) -> list[str]:
    if (comparison := found["comparison"]) is None:
        return []
    path, pairs = found["file"], comparison["pairs"]
    lacking, surplus = comparison["only_in_baseline"], comparison["only_in_file"]
    notes = []
    if lacking:
        notes.append(f"{path} lacks {lacking} of the baseline's {pairs + lacking} uuids")
    if surplus:
        notes.append(f"the baseline lacks {surplus} of the {pairs + surplus} uuids of {path}")
    return [f"{note}: compared over the {pairs} that both have" for note in notes]


def summarize(scored: ScoredPredictions) -> dict[str, Any]:
    """A file's figures; fractions are between 0 and 1. Of several paraphrases it is the mean."""
    num_questions, num_paraphrases = scored.right.shape
    summary: dict[str, Any] = {
        "file": scored.path,
        "questions": num_questions,
        "paraphrases": num_paraphrases,
        "prompts": scored.num_prompts,
        "match": scored.match,
    }
    if num_paraphrases == 1:
        summary |= _fraction(scored.right[:, 0])
    else:
        fractions = scored.right.mean(axis=1)  # [Q]
        summary |= {
            "right": None,
            "accuracy": float(fractions.mean()),
            "interval": bootstrap_interval(fractions),
        }
    summary |= {"scores": _scores(scored), "counts": _counts(scored)}
    return summary | {"per_prompt": _per_prompt(scored) if scored.per_prompt else None}


def _fraction(right: "np.ndarray") -> dict[str, Any]:
    """right: [Q] bool"""
    count = int(right.sum())
    return {
        "right": count,
        "accuracy": count / len(right),
        "interval": wilson_interval(count, len(right)),
    }


def _scores(scored: ScoredPredictions) -> dict[str, float | None]:
    """The mean by each matcher; None by those of lemmas where there are none."""
    means = {name: float(each.mean()) for name, each in scored.matches.items()}
    return {name: means.get(name) for name in (*MATCHERS, "f1")}


def _counts(scored: ScoredPredictions) -> dict[str, int | None]:
    """How many predictions may hang on the matcher."""
    matches, truncated = scored.matches, scored.truncated
    surplus = matches["two_way"] & ~matches["one_way"] if "two_way" in matches else None
    return {
        "empty": sum(not p.strip() for group in scored.predictions for p in group),
        "truncated": None if truncated is None else int(truncated.sum()),
        "only_two_way": None if surplus is None else int(surplus.sum()),
    }


def _per_prompt(scored: ScoredPredictions) -> dict[str, Any]:
    import numpy as np

    num_questions, num_paraphrases = scored.right.shape
    several = num_paraphrases > 1
    predictions = [list(map(normalize_answer, group)) for group in scored.predictions]
    alike = sum(len(set(group)) == 1 for group in predictions)
    pairs = sum(map(pair_agreement, predictions)) if several else None
    return {
        "each": [_fraction(scored.right[:, n]) for n in range(num_paraphrases)],
        "any": _fraction(np.any(scored.right, axis=1)),
        "pairs_agree": pairs / num_questions if several else None,
        "all_agree": alike / num_questions if several else None,
    }


def pair_agreement(predictions: Sequence[str]) -> float:
    """Fraction of the pairs among a question's normalised predictions that are equal."""
    n = len(predictions)
    equal = sum(count * (count - 1) for count in Counter(predictions).values())
    return equal / (n * (n - 1))
