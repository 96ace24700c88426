"""The paired difference of two files of predictions over the questions that both have."""

from collections.abc import Sequence
from typing import Any

from self_ensemble.data.choices import NORMS
from self_ensemble.evaluation.scored import MATCHERS, ScoredPredictions
from self_ensemble.evaluation.statistics import (
    bootstrap_interval,
    cluster_bootstrap_interval,
    holm,
    mcnemar_p,
    tango_interval,
)
from self_ensemble.system.errors import UserError


def compare(scored: ScoredPredictions, baseline: ScoredPredictions) -> dict[str, Any]:
    """The paired difference `scored` minus `baseline` over the questions that both have.

    Of a per_prompt baseline the first paraphrase counts; of a per_prompt file the mean over its
    paraphrases, question by question. Each file is right by its own matcher, which is another
    where one chooses and the other generates. `by_match` holds the same difference by every matcher
    or norm that both files have, `bootstrap` its interval over resampled questions,
    `relation_bootstrap` that over resampled relations (None where rows carry none, or one only).

    Raises:
        UserError: a file has no uuids, or they have none in common, or one stands for different
            questions, or a question of the baseline lacks its first paraphrase.
    """
    uuids, reference_uuids = map(_needed_uuids, (scored, baseline))
    baseline = baseline.first_paraphrase()
    places = {uuid: i for i, uuid in enumerate(reference_uuids)}
    pairs = [(i, places[uuid]) for i, uuid in enumerate(uuids) if uuid in places]
    if not pairs:
        raise UserError(f"{scored.path} and the baseline {baseline.path} share no uuid")
    here, there = map(list, zip(*pairs, strict=True))
    scored, baseline = scored.take(here), baseline.take(there)
    _check_same_questions(scored, baseline)
    by_match = {
        name: _difference(scored, name, baseline, name)
        for name in (*MATCHERS, *NORMS)
        if name in scored.matches and name in baseline.matches
    }
    differences = scored.fractions(scored.match) - baseline.right[:, 0]  # [pairs]
    relations = scored.relations or baseline.relations
    return {
        "pairs": len(pairs),
        "only_in_file": len(uuids) - len(pairs),
        "only_in_baseline": len(reference_uuids) - len(pairs),
        **_difference(scored, scored.match, baseline, baseline.match),
        "bootstrap": bootstrap_interval(differences),
        "relations": len(set(relations)) if relations else None,
        "relation_bootstrap": (
            cluster_bootstrap_interval(differences, relations) if relations else None
        ),
        "by_match": by_match,
    }


def _needed_uuids(scored: ScoredPredictions) -> list[str]:
    if scored.uuids is None:
        raise UserError(f"{scored.path} has no column `uuid`, which a comparison needs")
    return scored.uuids


def _check_same_questions(scored: ScoredPredictions, baseline: ScoredPredictions) -> None:
    """Raises UserError where what is right, or what there is to choose from, is not the same."""
    of_choices = scored.choices is not None and baseline.choices is not None
    for i, uuid in enumerate(_needed_uuids(scored)):
        differs = None
        if sorted(scored.answers[i]) != sorted(baseline.answers[i]):
            differs = "answers"
        elif of_choices and _choices(scored, i) != _choices(baseline, i):
            differs = "choices"
        if differs:
            raise UserError(
                f"uuid {uuid} is another question in {scored.path} than in the baseline "
                f"{baseline.path}: its {differs} differ; compare files of the same dataset"
            )


def _choices(scored: ScoredPredictions, question: int) -> list[str]:
    assert scored.choices is not None
    return sorted(scored.choices[question][0].choices)


def _difference(
    scored: ScoredPredictions, match: str, baseline: ScoredPredictions, reference_match: str
) -> dict[str, Any]:
    """Of two files with the same questions, in the same order."""
    right, reference = scored.matches[match], baseline.matches[reference_match][:, 0]
    if right.shape[1] > 1:
        differences = scored.fractions(match) - reference
        return {
            "won": None,
            "lost": None,
            "difference": float(differences.mean()),
            "interval": bootstrap_interval(differences),
            "mcnemar_p": None,  # a test of pairs, and a mean over paraphrases makes no pairs
        }
    won = int((right[:, 0] & ~reference).sum())
    lost = int((~right[:, 0] & reference).sum())
    return {
        "won": won,
        "lost": lost,
        "difference": (won - lost) / len(reference),
        "interval": tango_interval(won, lost, len(reference)),
        "mcnemar_p": mcnemar_p(won, lost),
    }


def adjust_p_values(comparisons: Sequence[dict[str, Any] | None]) -> None:
    """Adds `holm_p`: p among all the tests that the table shows; None where there is one only."""
    tested = [c for c in comparisons if c is not None and c["mcnemar_p"] is not None]
    adjusted = holm([c["mcnemar_p"] for c in tested])
    for comparison in filter(None, comparisons):
        comparison["holm_p"] = None
    for comparison, p in zip(tested, adjusted, strict=True):
        comparison["holm_p"] = p if len(tested) > 1 else None
