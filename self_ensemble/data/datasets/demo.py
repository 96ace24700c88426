"""The demo: questions about the facts that the bundled model was trained on."""

from self_ensemble.data.question_files import load_few_shot, read_question_rows, records_of
from self_ensemble.data.records import Dataset
from self_ensemble.data.registry import DatasetOptions, register_dataset
from self_ensemble.system.bundled import DEMO_FEW_SHOT, DEMO_QUESTIONS

# The demo model is trained with this very text: changing it means training again.
INSTRUCTION = "Give the missing fact in as few words as possible."


@register_dataset("demo")
def open_demo(options: DatasetOptions) -> Dataset:
    records = records_of(DEMO_QUESTIONS, *read_question_rows(DEMO_QUESTIONS))
    return Dataset("demo", records, load_few_shot(DEMO_FEW_SHOT), INSTRUCTION)
