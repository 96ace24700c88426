"""What a model wrote for a question so far, each text with what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from self_ensemble.data import Record
from self_ensemble.data.records import original_wording
from self_ensemble.paraphrasing.prompts import ECHOES
from self_ensemble.paraphrasing.quality_filter import rejections
from self_ensemble.paraphrasing.rejections import Judgement, Rejection
from self_ensemble.paraphrasing.words import MASK


@dataclass
class Candidates:
    """A question and what was sampled for it: texts, each with its rejections."""

    record: Record
    texts: list[tuple[str, tuple[Rejection, ...]]] = field(default_factory=list)

    @property
    def question(self) -> str:
        """What is put in other words. Raises UserError where there is nothing."""
        return original_wording(self.record)

    @property
    def kind(self) -> str:
        """Which of `PROMPTS` it goes into."""
        return "sentences" if MASK in self.question else "questions"

    def add(self, text: str, *, truncated: bool, judgement: Judgement | None = None) -> None:
        """Puts a sampled text through the quality filter.

        truncated: it ended at the token limit. judgement: what a model says of it, see `judge`.
        """
        rejected = rejections(
            text,
            question=self.question,
            answers=self.record.answers,
            earlier=self.texts,
            echoes=ECHOES,
            truncated=truncated,
            judgement=judgement,
        )
        self.texts.append((text, rejected))

    def paraphrases(self, *, drop: bool) -> list[str]:
        """The texts; with ``drop`` those that the filter lets through."""
        return [text for text, rejected in self.texts if not (drop and rejected)]
