"""The datasets, under the name that scripts and notebooks have always imported them from."""

from self_ensemble.data import (
    Dataset,
    FewShot,
    PromptTemplate,
    Record,
    construct_prompts,
    load_dataset,
    prompt_template,
    register_dataset,
)
from self_ensemble.data.datasets.myriadlama import MyriadLamaDataset
from self_ensemble.data.datasets.pararel import ParaRelDataset
from self_ensemble.data.datasets.webqa import WebQADataset

__all__ = [
    "Dataset",
    "FewShot",
    "MyriadLamaDataset",
    "ParaRelDataset",
    "PromptTemplate",
    "Record",
    "WebQADataset",
    "construct_prompts",
    "load_dataset",
    "prompt_template",
    "register_dataset",
]
