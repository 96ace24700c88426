"""Self-ensembling language models: one question in several wordings, one fused answer.

    from self_ensemble import Ensemble

    ensemble = Ensemble.from_pretrained("demo")
    ensemble.generate([["What is the capital of France?", "France's capital is which city?"]])

Importing this is quick and changes nothing; torch is imported when something that needs it is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from self_ensemble.attention.fusion import Fusion, register_fusion
    from self_ensemble.data import (
        Dataset,
        FewShot,
        Prompt,
        PromptTemplate,
        Record,
        WholePrompts,
        load_dataset,
        register_dataset,
    )
    from self_ensemble.ensemble import ChoiceLikelihoods, Ensemble, FusedAnswer
    from self_ensemble.integrations.generate import FusedOutput, generate_fused
    from self_ensemble.methods.attention_fusion import AttentionFusion
    from self_ensemble.methods.logit_fusion import register_logit_method
    from self_ensemble.methods.prompt_by_prompt import LogitFusion
    from self_ensemble.methods.votes import register_vote
    from self_ensemble.methods.weighting import register_weighting
    from self_ensemble.models.aliases import register_alias
    from self_ensemble.system.errors import UserError

# Name → the module that it is in.
_WHERE = {
    "AttentionFusion": "self_ensemble.methods.attention_fusion",
    "ChoiceLikelihoods": "self_ensemble.ensemble",
    "Dataset": "self_ensemble.data",
    "Ensemble": "self_ensemble.ensemble",
    "FewShot": "self_ensemble.data",
    "FusedAnswer": "self_ensemble.ensemble",
    "FusedOutput": "self_ensemble.integrations.generate",
    "Fusion": "self_ensemble.attention.fusion",
    "LogitFusion": "self_ensemble.methods.prompt_by_prompt",
    "Prompt": "self_ensemble.data",
    "PromptTemplate": "self_ensemble.data",
    "Record": "self_ensemble.data",
    "UserError": "self_ensemble.system.errors",
    "WholePrompts": "self_ensemble.data",
    "generate_fused": "self_ensemble.integrations.generate",
    "load_dataset": "self_ensemble.data",
    "register_alias": "self_ensemble.models.aliases",
    "register_dataset": "self_ensemble.data",
    "register_fusion": "self_ensemble.attention.fusion",
    "register_logit_method": "self_ensemble.methods.logit_fusion",
    "register_vote": "self_ensemble.methods.votes",
    "register_weighting": "self_ensemble.methods.weighting",
}

__all__ = [
    "AttentionFusion",
    "ChoiceLikelihoods",
    "Dataset",
    "Ensemble",
    "FewShot",
    "FusedAnswer",
    "FusedOutput",
    "Fusion",
    "LogitFusion",
    "Prompt",
    "PromptTemplate",
    "Record",
    "UserError",
    "WholePrompts",
    "generate_fused",
    "load_dataset",
    "register_alias",
    "register_dataset",
    "register_fusion",
    "register_logit_method",
    "register_vote",
    "register_weighting",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
