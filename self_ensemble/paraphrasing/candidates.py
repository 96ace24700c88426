"""What a model wrote for a question so far, each text with the reasons to reject it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from self_ensemble.data import Record
from self_ensemble.data.records import original_wording
from self_ensemble.paraphrasing.prompts import PROMPTS
from self_ensemble.paraphrasing.words import MASK, key

# Of the prompts' own demonstrations: a candidate that repeats one is no paraphrase.
DEMONSTRATION_KEYS = frozenset(
    key(text)
    for _, demonstrations in PROMPTS.values()
    for shot in demonstrations
    for text in (shot.question, shot.answer)
)


@dataclass
class Candidates:
    """A question and what was sampled for it: texts, each with its rejection reasons."""

    record: Record
    texts: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    @property
    def question(self) -> str:
        """What is put in other words. Raises UserError where there is nothing."""
        return original_wording(self.record)

    @property
    def kind(self) -> str:
        """Which of `PROMPTS` it goes into."""
        return "sentences" if MASK in self.question else "questions"

    def add(self, text: str, *, truncated: bool, casing: Mapping[str, float] | None) -> None:
        """Puts a sampled text through the quality filter.

        truncated: it ended at the token limit. casing: from `quality_filter.load_casing`.
        """
        rejected = rejection_reasons(
            text,
            question=self.question,
            answers=self.record.answers,
            casing=casing,
            earlier=self.texts,
            echoes=DEMONSTRATION_KEYS - {key(self.question)},
            truncated=truncated,
        )
        self.texts.append((text, rejected))

    def paraphrases(self, *, drop: bool) -> list[str]:
        """The texts; with ``drop`` those that the filter lets through."""
        return [text for text, rejected in self.texts if not (drop and rejected)]
