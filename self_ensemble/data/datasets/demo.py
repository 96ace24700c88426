"""The demo: questions about the facts that the bundled model was trained on."""

from pathlib import Path

from self_ensemble.data.question_files import load_few_shot, read_question_rows, records_of
from self_ensemble.data.records import Dataset
from self_ensemble.data.registry import DatasetOptions, register_dataset
from self_ensemble.system.bundled import DEMO_CHOICES, DEMO_FEW_SHOT, DEMO_QUESTIONS

# The demo model is trained with this very text: changing it means training again.
INSTRUCTION = "Give the missing fact in as few words as possible."


@register_dataset("demo")
def open_demo(options: DatasetOptions) -> Dataset:
    return _demo("demo", DEMO_QUESTIONS)


@register_dataset("demo_choices")
def open_demo_choices(options: DatasetOptions) -> Dataset:
    """The same questions with four choices each, for ``--task choices``."""
    return _demo("demo_choices", DEMO_CHOICES)


def _demo(name: str, questions: Path) -> Dataset:
    records = records_of(questions, *read_question_rows(questions))
    return Dataset(name, records, load_few_shot(DEMO_FEW_SHOT), INSTRUCTION)
