"""How far answers depend on the wording: figures of files with a row a paraphrase.

Q questions, N paraphrases at most; a question may have fewer. Paraphrases are counted from 0.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # numpy comes after parsing: --help stays quick
    import numpy as np


def spread_of(right: "np.ndarray", present: "np.ndarray") -> dict[str, Any]:
    """The worst and the best paraphrase, and how far the accuracies of all lie apart.

    `best` and `worst` are {paraphrase, accuracy}, of equal ones the earlier: the best is the
    maximum performance of Mizrahi et al. 2024, "State of What Art? A Call for Multi-Prompt LLM
    Evaluation" (arXiv 2401.00595), whose average performance is a file's accuracy. `spread` is
    their difference (Sclar et al. 2024, arXiv 2310.11324); `sd` the standard deviation of the N
    accuracies, of a sample (N - 1). Accuracies are compared over the same questions, the `complete`
    ones: those that have all N paraphrases.

    Args:
        right: [Q, N] bool.
        present: [Q, N] bool, which of them there are.

    Returns:
        A dict with the keys named; None for all but `complete` where N is 1.
    """
    complete = present.all(axis=1)
    accuracies = right[complete].mean(axis=0)  # [N]; some question has N
    if len(accuracies) == 1:
        names = ("worst", "best", "spread", "sd")
        return dict.fromkeys(names) | {"complete": int(complete.sum())}
    worst, best = int(accuracies.argmin()), int(accuracies.argmax())
    return {
        "worst": {"paraphrase": worst, "accuracy": float(accuracies[worst])},
        "best": {"paraphrase": best, "accuracy": float(accuracies[best])},
        "spread": float(accuracies[best] - accuracies[worst]),
        "sd": float(accuracies.std(ddof=1)),
        "complete": int(complete.sum()),
    }


def consistency(said: Sequence[Sequence[Hashable]]) -> dict[str, Any]:
    """How often paraphrases of a question get the same answer, right or wrong.

    `pairs_agree` is the consistency rate: the fraction of the pairs of a question's paraphrases
    that agree, averaged over questions (Zhao et al. 2024, "Improving the Robustness of Large
    Language Models via Consistency Alignment", arXiv 2403.14221, whose judge of two long responses
    is here that short answers are equal). `all_agree` is the fraction of questions on which all
    agree. Both are of the `paired` questions, those with two paraphrases or more.

    Args:
        said: [Q][any number] equal where two answers agree.
    """
    several = [answers for answers in said if len(answers) > 1]
    if not several:
        return {"pairs_agree": None, "all_agree": None, "paired": 0}
    return {
        "pairs_agree": sum(map(pair_agreement, several)) / len(several),
        "all_agree": sum(len(set(answers)) == 1 for answers in several) / len(several),
        "paired": len(several),
    }


def pair_agreement(answers: Sequence[Hashable]) -> float:
    """Fraction of the pairs among a question's answers, two or more, that are equal."""
    n = len(answers)
    equal = sum(count * (count - 1) for count in Counter(answers).values())
    return equal / (n * (n - 1))
