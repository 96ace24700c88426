"""How paraphrases are sampled, and what becomes of those that the quality filter rejects."""

from dataclasses import dataclass

from self_ensemble.generation.config import GenerationConfig, SamplingConfig

# A paraphrase is longer than an answer.
PARAPHRASE_LIMITS = GenerationConfig(max_new_tokens=64)
# Without the least likely tokens: a paraphrase must keep the names and numbers. Of the temperatures
# tried on training questions (docs/paraphrases.md) the filter lets most pass at this one.
PARAPHRASE_SAMPLING = SamplingConfig(temperature=0.7, top_p=0.95)


@dataclass(frozen=True, kw_only=True)
class ParaphraseConfig:
    """The defaults stand here alone.

    num_paraphrases: of each question.
    drop: take out what the quality filter rejects, and sample again.
    max_attempts: with ``drop``, how often each paraphrase is sampled at most.
    chat_template: put the prompt into the model's own chat format.
    sampling: temperature, top-p and seed.
    generation: the longest paraphrase, in tokens, and how many are sampled at a time.
    """

    num_paraphrases: int = 5
    drop: bool = False
    max_attempts: int = 5
    chat_template: bool = False
    sampling: SamplingConfig = PARAPHRASE_SAMPLING
    generation: GenerationConfig = PARAPHRASE_LIMITS
