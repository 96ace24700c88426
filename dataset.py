"""The datasets, under the name that scripts and notebooks have always imported them from."""

from self_ensemble.data.dataset import (
    Dataset,
    FewShot,
    PromptTemplate,
    Record,
    construct_prompts,
    load_dataset,
    prompt_template,
)
from self_ensemble.data.hub_datasets import MyriadLamaDataset, WebQADataset

__all__ = [
    "Dataset",
    "FewShot",
    "MyriadLamaDataset",
    "PromptTemplate",
    "Record",
    "WebQADataset",
    "construct_prompts",
    "load_dataset",
    "prompt_template",
]
