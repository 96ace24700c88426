"""Questions in several wordings: records, prompts, datasets, and the tables they are read from."""

from self_ensemble.data.prompts import Prompt, chat_prompt_template, choose_template
from self_ensemble.data.question_files import load_few_shot
from self_ensemble.data.records import Dataset, FewShot, Record, select_paraphrases
from self_ensemble.data.registry import (
    DatasetOptions,
    dataset_names,
    load_dataset,
    open_dataset,
    register_dataset,
)
from self_ensemble.data.templates import (
    PromptTemplate,
    WholePrompts,
    construct_prompts,
    prompt_template,
)

from self_ensemble.data import datasets  # isort: skip  (registers the bundled ones)

__all__ = [
    "Dataset",
    "DatasetOptions",
    "FewShot",
    "Prompt",
    "PromptTemplate",
    "Record",
    "WholePrompts",
    "chat_prompt_template",
    "choose_template",
    "construct_prompts",
    "dataset_names",
    "datasets",
    "load_dataset",
    "load_few_shot",
    "open_dataset",
    "prompt_template",
    "register_dataset",
    "select_paraphrases",
]
