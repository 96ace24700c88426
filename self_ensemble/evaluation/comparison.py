"""The paired difference of two files of predictions over the questions that both have."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from self_ensemble.evaluation.scored import MATCHERS, ScoredPredictions
from self_ensemble.evaluation.statistics import (
    bootstrap_interval,
    cluster_bootstrap_interval,
    holm,
    mcnemar_p,
    tango_interval,
)
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # numpy comes after parsing: --help stays quick
    import numpy as np


def compare(scored: ScoredPredictions, baseline: ScoredPredictions) -> dict[str, Any]:
    """The paired difference `scored` minus `baseline` over the questions that both have.

    Of a per_prompt baseline the first paraphrase counts; of a per_prompt file the mean over its
    paraphrases, question by question. `by_match` holds the same difference by every matcher that
    both files have, `bootstrap` its interval over resampled questions, `relation_bootstrap` that
    over resampled relations (None where rows carry none, or one only).

    Raises:
        UserError: a file has no uuids, or they have none in common, or one stands for different
            questions.
    """
    uuids, reference_uuids = map(_needed_uuids, (scored, baseline))
    places = {uuid: i for i, uuid in enumerate(reference_uuids)}
    pairs = [(i, places[uuid]) for i, uuid in enumerate(uuids) if uuid in places]
    if not pairs:
        raise UserError(f"{scored.path} and the baseline {baseline.path} share no uuid")
    for i, j in pairs:
        if sorted(scored.answers[i]) != sorted(baseline.answers[j]):
            raise UserError(
                f"uuid {uuids[i]} is another question in {scored.path} than in the baseline "
                f"{baseline.path}: its answers differ; compare files of the same dataset"
            )
    here, there = map(list, zip(*pairs, strict=True))
    by_match = {
        name: _difference(scored.matches[name][here], baseline.matches[name][there, 0])
        for name in MATCHERS
        if name in scored.matches and name in baseline.matches
    }
    right, reference = scored.right[here], baseline.right[there, 0]  # [pairs, N], [pairs]
    differences = right.mean(axis=1) - reference
    relations = None
    if scored.relations:
        relations = [scored.relations[i] for i in here]
    elif baseline.relations:
        relations = [baseline.relations[i] for i in there]
    return {
        "pairs": len(pairs),
        "only_in_file": len(uuids) - len(pairs),
        "only_in_baseline": len(reference_uuids) - len(pairs),
        **by_match[scored.match],
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


def _difference(right: "np.ndarray", reference: "np.ndarray") -> dict[str, Any]:
    """right: [pairs, N], reference: [pairs]"""
    if right.shape[1] > 1:
        differences = right.mean(axis=1) - reference
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
