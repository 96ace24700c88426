"""What a run asks: the questions of a dataset in chosen wordings, and the prompt around them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from self_ensemble.data import (
    Dataset,
    PromptTemplate,
    Record,
    choose_template,
    open_dataset,
    select_paraphrases,
)
from self_ensemble.experiment.config import PromptConfig, QuestionConfig
from self_ensemble.system.console import say


@dataclass(frozen=True)
class Questions:
    """The dataset, its records with the paraphrases chosen, and the prompt.

    indexs: which paraphrases were chosen by --indexs; None: the first ones.
    """

    dataset: Dataset
    records: list[Record]
    template: PromptTemplate
    indexs: Sequence[int] | None = None

    @property
    def num_paraphrases(self) -> int:
        return len(self.records[0].paraphrases)

    @cached_property
    def asked_examples(self) -> int:
        """How many questions the prompt shows with an answer."""
        wordings = ((*record.paraphrases, record.question) for record in self.records)
        head = self.template.head
        return sum(any(text and f"Q: {text}\nA: " in head for text in each) for each in wordings)


def read_questions(
    config: QuestionConfig, prompt: PromptConfig, *, model: str, original: bool = False
) -> Questions:
    """The questions that are asked for, in their prompt.

    Args:
        config: which questions, in which wordings.
        prompt: what stands around them.
        model: the name of the run's model, whose own paraphrases a dataset may take.
        original: one wording each: the column `question`, else paraphrase 0.

    Raises:
        UserError: the dataset cannot be had, or lacks what is asked for.
    """
    options = replace(
        config.options, model=model, original=original, needs_few_shot=prompt.needs_few_shot
    )
    dataset = open_dataset(config.dataset, options)
    template = choose_template(
        dataset,
        instruction=prompt.instruction,
        few_shot_file=prompt.few_shot,
        num_few_shot=prompt.num_few_shot,
    )
    if original:
        records = [
            replace(record, paraphrases=(record.question or record.paraphrases[0],))
            for record in dataset.records
        ]
    else:
        records = select_paraphrases(
            dataset.records, num_paraphrases=options.num_paraphrases, indexs=options.indexs
        )
    questions = Questions(dataset, records, template, options.indexs)
    if questions.asked_examples:
        say(
            f"{questions.asked_examples} of the questions are among the few-shot demonstrations: "
            "their answers are in the prompt"
        )
    return questions
