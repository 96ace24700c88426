"""The report on files of predictions: what score.py prints, draws and writes as JSON.

    report = make_report(["avg-5.feather", "vote-5.feather"], "avg-5.feather")
    print(render_report(report))

Accuracies and differences in it are fractions, from 0 to 1.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from self_ensemble.data.choices import NORMS
from self_ensemble.data.extraction import Extraction
from self_ensemble.evaluation.choices import calibrate
from self_ensemble.evaluation.comparison import adjust_p_values, compare
from self_ensemble.evaluation.scored import MATCHERS, ScoredPredictions, score_predictions
from self_ensemble.evaluation.spread import consistency, spread_of
from self_ensemble.evaluation.statistics import bootstrap_interval, wilson_interval

if TYPE_CHECKING:  # numpy comes after parsing: --help stays quick
    import numpy as np


def make_report(
    paths: Sequence[str],
    baseline_path: str | None = None,
    *,
    match: str = "exact",
    extract: Extraction | None = None,
    choice_norm: str | None = None,
    lemmas: str | None = None,
    spacy_model: str | None = None,
    by: str | None = None,
) -> dict[str, Any]:
    """Everything that is printed, in JSON types: what --json shows and the tables are made of.

    Args:
        paths: files of predictions, see `score_predictions`.
        baseline_path: the file that every other one is compared with.
        others: as of `score_predictions`; the baseline is not split.

    Raises:
        UserError: a file cannot be read, or two cannot be compared.
    """
    score = partial(
        score_predictions,
        match=match,
        extract=extract,
        choice_norm=choice_norm,
        lemmas=lemmas,
        spacy_model=spacy_model,
    )
    files = [score(path, by=by) for path in paths]
    baseline = None if baseline_path is None else score(baseline_path)
    return report_on(files, baseline, by=by, extract=extract)


def report_on(
    files: Sequence[ScoredPredictions],
    baseline: ScoredPredictions | None,
    *,
    by: str | None = None,
    extract: Extraction | None = None,
) -> dict[str, Any]:
    """The report on files that are scored already, see `make_report`."""
    report: dict[str, Any] = {"baseline": None, "by": by, "files": [], "notes": []}
    if extract is not None:
        report["extract"] = str(extract)
    for scored in files:
        found = summarize(scored) | {"comparison": _comparison(scored, baseline)}
        found["by"] = [
            {"value": value, **summarize(part), "comparison": _part_comparison(part, baseline)}
            for value, part in _parts(scored)
        ]
        report["files"].append(found)
        report["notes"] += [*scored.notes, *_coverage_notes(found), *_match_notes(scored, baseline)]
    if baseline is not None:
        report["notes"] += [note for note in baseline.notes if note not in report["notes"]]
        first, which = baseline.first_paraphrase(), None
        if baseline.per_prompt:
            which = baseline.numbers(baseline.right.shape[1])[0]
            note = f"{baseline.path} has a row a paraphrase: the baseline is its paraphrase {which}"
            report["notes"].insert(0, note)
        report["baseline"] = {"file": baseline.path, "questions": len(baseline.right)}
        report["baseline"] |= {"paraphrase": which}
        report["baseline"] |= _fraction(first.right[:, 0])
        report["baseline"] |= {"scores": _scores(first), "counts": _counts(first)}
        report["baseline"] |= _of_choices(first)
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


def _match_notes(scored: ScoredPredictions, baseline: ScoredPredictions | None) -> list[str]:
    if baseline is None or scored.match == baseline.match:
        return []
    return [
        f"{scored.path} is right by {scored.match}, the baseline by {baseline.match}, in the "
        "paired difference too"
    ]


def summarize(scored: ScoredPredictions) -> dict[str, Any]:
    """A file's figures; fractions are between 0 and 1.

    Of several paraphrases it is the mean over questions of the mean over their paraphrases.
    """
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
        fractions = scored.fractions(scored.match)  # [Q]
        summary |= {
            "right": None,
            "accuracy": float(fractions.mean()),
            "interval": bootstrap_interval(fractions),
        }
    summary |= {"scores": _scores(scored), "counts": _counts(scored)}
    summary |= {"per_prompt": _per_prompt(scored) if scored.per_prompt else None}
    return summary | _of_choices(scored)


def _fraction(right: "np.ndarray") -> dict[str, Any]:
    """right: [Q] bool"""
    count = int(right.sum())
    return {
        "right": count,
        "accuracy": count / len(right),
        "interval": wilson_interval(count, len(right)),
    }


def _scores(scored: ScoredPredictions) -> dict[str, float | None]:
    """The mean by each matcher or norm; None by those of lemmas where there are none."""
    names = NORMS if scored.choices is not None else (*MATCHERS, "f1")
    applying = [name for name in names if name in scored.matches or name != "number"]
    return {name: _mean(scored, name) if name in scored.matches else None for name in applying}


def _mean(scored: ScoredPredictions, name: str) -> float:
    if scored.present.all():
        return float(scored.matches[name].mean())
    return float(scored.fractions(name).mean())


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

    numbers = scored.numbers(scored.right.shape[1])
    spread = spread_of(scored.right, scored.present)
    for end in ("worst", "best"):
        if spread[end] is not None:
            spread[end]["paraphrase"] = numbers[spread[end]["paraphrase"]]
    return {
        "each": [
            _fraction(scored.right[there, n])
            | {"paraphrase": numbers[n], "questions": int(there.sum())}
            for n, there in enumerate(scored.present.T)
        ],
        "any": _fraction(np.any(scored.right, axis=1)),
        "fewest": int(scored.present.sum(axis=1).min()),
        **consistency(scored.said()),
        **spread,
    }


def _of_choices(scored: ScoredPredictions) -> dict[str, Any]:
    """`choices` of a file of --task choices: every norm's figures; of others nothing."""
    if scored.choices is None:
        return {}
    rows = [row for group in scored.choices for row in group]
    sizes = [len(row.choices) for row in rows]
    return {
        "choices": {
            "fewest": min(sizes),
            "most": max(sizes),
            "norm": scored.match,
            "by_norm": {
                norm: {"accuracy": _mean(scored, norm)} | asdict(calibrate(rows, norm))
                for norm in NORMS
            },
        }
    }
