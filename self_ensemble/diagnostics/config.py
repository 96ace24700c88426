"""What the diagnostic scripts are asked for; the defaults stand here alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from self_ensemble.experiment.config import PromptConfig, QuestionConfig
from self_ensemble.methods.config import AttentionFusionConfig
from self_ensemble.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class DebugConfig:
    """Questions to look into, and how much is shown of them.

    uuid: of the only question that is shown; None: all that `questions` says.
    max_new_tokens: steps to follow, at most.
    verbose: whole prefixes, a larger mask, attention by layer, more candidates.
    interactive: stop before each stage.
    save: a new or empty folder for the page and its pictures.
    """

    questions: QuestionConfig = field(default_factory=QuestionConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: AttentionFusionConfig = field(default_factory=AttentionFusionConfig)
    uuid: str | None = None
    max_new_tokens: int = 10
    verbose: bool = False
    interactive: bool = False
    save: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CertificateConfig:
    """Which model is certified, how it is to fuse, and what of the demo it is asked.

    model, revision: see `ModelConfig`.
    method: its weights, where it has some, say how many wordings are asked.
    """

    model: str
    revision: str | None = None
    method: AttentionFusionConfig = field(default_factory=AttentionFusionConfig)
    questions: int = 3
    wordings: int = 5
    few_shot: int = 5


@dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """What is checked beside Python, packages and the machine, and how it is told.

    test_flex_attention: compile FlexAttention and try it on every device.
    certificate: of a model; None for no model.
    json: one JSON object instead of text.
    verbose: all tokens of all questions, and more remarks.
    """

    test_flex_attention: bool = False
    certificate: CertificateConfig | None = None
    json: bool = False
    verbose: bool = False
