"""Self-consistency: one wording, several drawn answers, and the one that most of them give.

Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language Models",
arXiv 2203.11171: the baseline that draws as many answers as a vote asks paraphrases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral

from self_ensemble.generation.decode import answer_text
from self_ensemble.generation.packed import PackedStreams
from self_ensemble.methods.base import Asked, Outcome, sampling_of
from self_ensemble.methods.config import SELF_CONSISTENCY_SAMPLING, LogitFusionConfig
from self_ensemble.methods.prompt_by_prompt import gathered, logit_request, prompts_at_once
from self_ensemble.methods.votes import majority
from self_ensemble.system.errors import UserError

PASS_NAME = "self_consistency"


@dataclass(frozen=True)
class SelfConsistency:
    """The first wording of every question is answered several times, and the answers vote.

    They are compared normalised, by what is extracted from them; ties go to the earlier one. Where
    the configuration asks for no sampling, they are drawn from `SELF_CONSISTENCY_SAMPLING`.

    samples: how many answers are drawn.

    Raises:
        UserError: that is no whole number above 0.
    """

    samples: int = LogitFusionConfig.samples

    def __post_init__(self) -> None:
        samples = self.samples
        if not isinstance(samples, Integral) or isinstance(samples, bool) or samples < 1:
            raise UserError(f"samples: {samples} is not a whole number above 0")

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        sampling = asked.config.sampling or SELF_CONSISTENCY_SAMPLING
        asked = replace(
            asked,
            questions=[paraphrases[:1] for paraphrases in asked.questions],
            config=replace(asked.config, sampling=sampling),
        )
        request, draws = logit_request(asked), range(self.samples)
        request = replace(
            request,
            questions=PackedStreams(group for group in request.questions for _ in draws),
            sampling=sampling_of(asked, [(uuid, k) for uuid in asked.uuids for k in draws]),
        )
        counts = [self.samples] * len(asked.questions)
        batch_size = prompts_at_once(asked.config.batch_size, counts)
        batches = asked.ask(PASS_NAME, request, batch_size=batch_size, unit="draws")
        for question, answers in gathered(batches, counts):
            texts = [answer_text(asked.engine.tokenizer, answer) for answer in answers]
            taken = majority([asked.extract(text) for text in texts])
            yield Outcome(question, (answers[taken],), 0)
