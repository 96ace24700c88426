"""What a model wrote for a question so far, each text with what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from self_ensemble.data import Record
from self_ensemble.data.records import original_wording
from self_ensemble.paraphrasing.prompts import ECHOES
from self_ensemble.paraphrasing.quality_filter import rejections
from self_ensemble.paraphrasing.ranking import ranked
from self_ensemble.paraphrasing.rejections import Judgement, Rejection
from self_ensemble.paraphrasing.words import MASK

# A question of which so many draws were all rejected is given up.
HOPELESS_DRAWS = 15


@dataclass
class Candidates:
    """A question and what was sampled for it: texts, each with its rejections.

    scores: what a model's judgement makes of each text, None where none was asked for.
    """

    record: Record
    texts: list[tuple[str, tuple[Rejection, ...]]] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

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
        self.texts.append((text, self._rejections(text, truncated, judgement)))
        self.scores.append(None if judgement is None else judgement.score)

    def is_open(self, text: str, *, truncated: bool) -> bool:
        """Whether a model's judgement can decide: nothing is wrong so far."""
        return not self._rejections(text, truncated, None)

    def _rejections(
        self, text: str, truncated: bool, judgement: Judgement | None
    ) -> tuple[Rejection, ...]:
        return rejections(
            text,
            question=self.question,
            answers=self.record.answers,
            earlier=self.texts,
            echoes=ECHOES,
            truncated=truncated,
            judgement=judgement,
        )

    def paraphrases(self, *, drop: bool) -> list[str]:
        """The texts; with ``drop`` those that pass, where a model judged them the best first."""
        if not drop:
            return [text for text, _ in self.texts]
        passed = [at for at, (_, rejected) in enumerate(self.texts) if not rejected]
        texts = [self.texts[at][0] for at in passed]
        scores = [score for at in passed if (score := self.scores[at]) is not None]
        if len(scores) < len(texts):
            return texts
        return [texts[at] for at in ranked(self.question, texts, scores)]

    @property
    def is_hopeless(self) -> bool:
        """So many draws, and none of them passes."""
        return len(self.texts) >= HOPELESS_DRAWS and all(rejected for _, rejected in self.texts)
