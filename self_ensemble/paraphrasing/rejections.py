"""What the quality filter found, and what a model said, of one paraphrase."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rejection:
    """One check that a paraphrase failed.

    check: its name, one of `quality_filter.CHECKS`.
    what: the word or text that it failed by; empty where it is the whole paraphrase.
    value: the number that was held against a threshold; None where there is none.
    """

    check: str
    what: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Judgement:
    """What a model says of a question and its paraphrase.

    explained: the fraction of the question's information that the paraphrase gives: 1 minus the
        question's log-probability behind the paraphrase by that behind an empty text. 1 where
        nothing is left to say, 0 where the paraphrase says nothing of it, negative where it
        misleads.
    """

    explained: float

    @property
    def score(self) -> float:
        """By which accepted paraphrases of a question are ranked, the best first."""
        return self.explained
