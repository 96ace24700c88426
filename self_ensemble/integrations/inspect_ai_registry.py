"""What Inspect reads at its start: the name ``self-ensemble``, without the model behind it.

It stands in the entry point ``inspect_ai``, so torch is imported only where the name is used. Needs
the package ``inspect_ai``.
"""

from inspect_ai.model import ModelAPI, modelapi

from self_ensemble.integrations import INSPECT_AI_NAME


def self_ensemble() -> type[ModelAPI]:
    """The model API, see `integrations.inspect_ai`."""
    from self_ensemble.integrations.inspect_ai import SelfEnsembleAPI

    return SelfEnsembleAPI


modelapi(INSPECT_AI_NAME)(self_ensemble)
