"""The model aliases, under the name that scripts and notebooks have always imported them from."""

from self_ensemble.models.aliases import MODEL_PATHs, register_alias

__all__ = ["MODEL_PATHs", "register_alias"]
