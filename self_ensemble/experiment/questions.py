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
from self_ensemble.data.extraction import FIRST_LINE
from self_ensemble.data.records import original_wording, record_with, require_choices
from self_ensemble.experiment.config import PromptConfig, QuestionConfig, TaskConfig
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.methods.config import AttentionFusionConfig
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError


@dataclass(frozen=True)
class Questions:
    """The dataset, its records with the paraphrases chosen, and the prompt.

    num_paraphrases: so many were asked for; with --fewer use a record may have fewer.
    indexs: which paraphrases were chosen by --indexs; None: the first ones.
    """

    dataset: Dataset
    records: list[Record]
    template: PromptTemplate
    num_paraphrases: int
    indexs: Sequence[int] | None = None

    @property
    def left_out(self) -> int:
        """How many questions have too few paraphrases (--fewer skip), or none at all."""
        return len(self.dataset.records) - len(self.records)

    @cached_property
    def with_fewer(self) -> list[Record]:
        """Those that have fewer paraphrases than were asked for, with --fewer use."""
        return [each for each in self.records if len(each.paraphrases) < self.num_paraphrases]

    @cached_property
    def give_choices(self) -> bool:
        """Whether any of them has choices."""
        return any(record.choices for record in self.records)

    def check_task(self, task: TaskConfig, generation: GenerationConfig) -> None:
        """Says where choices are not used, and where little is left to extract from.

        Raises:
            UserError: choices are to be scored, and a question has none, or an answer that is none
                of them.
        """
        if task.extract != FIRST_LINE and generation.stop is None:
            say(
                f"--extract {task.extract} looks at the first line alone, where answers end: "
                "--stop none lets them go on"
            )
        if task.name == "choices":
            if not self.give_choices:
                raise UserError(
                    f"--task choices: the questions of {self.dataset.name} give none; a file has "
                    "them in a column choices, lists of texts"
                )
            require_choices(self.records)
        elif self.give_choices:
            say(
                "the questions give choices, which are passed on and not used: --task choices "
                "scores them"
            )

    def check_weights(self, method: AttentionFusionConfig) -> None:
        """Raises UserError where there is not a weight for each paraphrase of every question."""
        method.check_count(self.num_paraphrases)
        if method.weights is not None and self.with_fewer:
            first = self.with_fewer[0]
            raise UserError(
                f"--weights: {len(method.weights)} weights for {self.num_paraphrases} paraphrases, "
                f"but {first.where} has {len(first.paraphrases)} of them; --fewer skip leaves such "
                "questions out"
            )

    @cached_property
    def asked_examples(self) -> int:
        """How many questions the prompt shows with an answer."""
        wordings = ((*record.paraphrases, record.question) for record in self.records)
        head = self.template.head
        return sum(any(text and f"Q: {text}\nA: " in head for text in each) for each in wordings)


def read_questions(
    config: QuestionConfig,
    prompt: PromptConfig,
    *,
    model: str,
    original: bool = False,
    uuid: str | None = None,
) -> Questions:
    """The questions that are asked for, in their prompt.

    Args:
        config: which questions, in which wordings.
        prompt: what stands around them.
        model: the name of the run's model, whose own paraphrases a dataset may take.
        original: one wording each: the column `question`, else paraphrase 0.
        uuid: of the only question that is wanted, whatever the others lack; None: all.

    Raises:
        UserError: the dataset cannot be had, or lacks what is asked for.
    """
    options = replace(
        config.options, model=model, original=original, needs_few_shot=prompt.needs_few_shot
    )
    if uuid is None:
        dataset = open_dataset(config.dataset, options)
    else:
        dataset = open_dataset(config.dataset, replace(options, fewer="use"))
        dataset = replace(dataset, records=[record_with(uuid, dataset)])
    template = choose_template(
        dataset,
        instruction=prompt.instruction,
        few_shot_file=prompt.few_shot,
        num_few_shot=prompt.num_few_shot,
    )
    if original:
        records = [replace(each, paraphrases=(original_wording(each),)) for each in dataset.records]
        count = 1
    else:
        records = select_paraphrases(
            dataset.records,
            num_paraphrases=options.num_paraphrases,
            indexs=options.indexs,
            fewer=options.fewer,
        )
        count = options.num_paraphrases if options.indexs is None else len(options.indexs)
    questions = Questions(dataset, records, template, count, options.indexs)
    if questions.left_out:
        say(
            f"{questions.left_out} of {len(dataset.records)} questions are left out (--fewer "
            f"{options.fewer}): they have too few paraphrases"
        )
    if questions.with_fewer:
        say(
            f"{len(questions.with_fewer)} of {len(records)} questions have fewer than {count} "
            "paraphrases and are asked with those that they have"
        )
    if not any(record.answers for record in records):
        say(
            f"the questions of {dataset.name} come without answers: theirs are generated, and "
            "score.py has nothing to compare them with"
        )
    if questions.asked_examples:
        say(
            f"{questions.asked_examples} of the questions are among the few-shot demonstrations: "
            "their answers are in the prompt"
        )
    return questions
