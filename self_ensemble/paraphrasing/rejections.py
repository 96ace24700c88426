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
    """What a model says of a question and its paraphrase, in nats.

    lift: how much likelier the paraphrase makes the question than an empty text does, per token.
    word_lifts: of each word of the question, the same, summed over its tokens.
    fluency: the log-probability of the paraphrase by itself, per token.
    """

    lift: float
    word_lifts: tuple[tuple[str, float], ...]
    fluency: float

    @property
    def score(self) -> float:
        """By which accepted paraphrases of a question are ranked, the best first."""
        return self.lift
