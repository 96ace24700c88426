"""What a method is asked for: by which of its variants the paraphrases are fused.

Nothing here imports torch: a command line knows the names and the defaults at once.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from self_ensemble.generation.config import SamplingConfig
from self_ensemble.system.errors import UserError

LAYOUTS = ("shared", "concat")
# Those of attention/positions.py and the registered ones of attention/fusion.py.
POSITIONS = ("exact", "left", "right", "sequential")
FUSION_NAMES = ("mean", "joint")
# The tau of a fusion where none is given; of one that is not here it is 0.
DEFAULT_TAU = {"mean": 1.0}
# From what self_consistency draws where nothing is said: the temperature of Wang et al. 2022 for
# the larger models.
SELF_CONSISTENCY_SAMPLING = SamplingConfig(temperature=0.7)


def fusion_names() -> tuple[str, ...]:
    """The bundled fusions, and those that were registered: whoever did has imported torch."""
    loaded = sys.modules.get("self_ensemble.attention.fusion")
    return FUSION_NAMES if loaded is None else tuple(loaded.FUSIONS)


@dataclass(frozen=True)
class AttentionFusionConfig:
    """Attention fusion; the defaults stand here and in `DEFAULT_TAU` alone.

    layout: ``shared`` encodes the common prompt once; ``concat`` joins whole prompts.
    positions: ``exact``, ``left``, ``right`` or ``sequential``, see `attention.positions`; None for
        what suits the model and the fusion.
    fusion: the name of an attention fusion, see `attention.fusion`.
    tau: the exponent of a paraphrase's attention mass in its weight, for the fusion ``mean``; None
        for the fusion's own, see `DEFAULT_TAU`.
    weights: one for each paraphrase, 0 or more, not all 0; None for equal ones.
    weights_by: a weighting that finds weights for each question, see `methods.weighting`;
        None: none is asked.
    """

    layout: str = "shared"
    positions: str | None = None
    fusion: str = "mean"
    tau: float | None = None
    weights: Sequence[float] | None = None
    weights_by: str | None = None

    @property
    def tau_used(self) -> float:
        """tau, or where none is given that of the fusion."""
        return DEFAULT_TAU.get(self.fusion, 0.0) if self.tau is None else self.tau

    def check_count(self, count: int) -> None:
        """Raises UserError where there is not a weight for each of so many paraphrases."""
        if self.weights is not None and len(self.weights) != count:
            raise UserError(f"--weights: {len(self.weights)} weights for {count} paraphrases")


@dataclass(frozen=True, kw_only=True)
class LogitFusionConfig:
    """Logit fusion, a vote, or single paraphrases; the defaults stand here alone.

    method: the name of a method, see `methods.names`.
    confidence: weighted methods: a column of the dataset's file with a number for each paraphrase;
        None: the confidence of each paraphrase's own answer.
    weights_by: weighted methods: instead of it, see `AttentionFusionConfig`.
    samples: self_consistency: how many answers are drawn.
    """

    method: str = "avg"
    confidence: str | None = None
    weights_by: str | None = None
    samples: int = 5
