"""WebQuestions: 2,032 test questions of one wording, which a model puts in other words.

    WebQADataset(data_dir=None, revision=None, paraphrase_model="demo").load(max_samples=100)

Berant et al. 2013, "Semantic Parsing on Freebase from Question-Answer Pairs". The paraphrases are
those of paraphrase.py, `data/webqa/<model>/paraphrases.jsonl`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from self_ensemble.data.hub_tables import (
    NO_EXAMPLES,
    checked_folder,
    draw_examples,
    fetch,
    hub_table,
    needed_files,
    read_files,
)
from self_ensemble.data.names import FEWER
from self_ensemble.data.paraphrase_files import ParaphraseSource, add_paraphrases
from self_ensemble.data.question_files import demonstration, records_of
from self_ensemble.data.records import Dataset, FewShot
from self_ensemble.data.registry import DatasetOptions, register_dataset
from self_ensemble.data.result_files import safe_name
from self_ensemble.data.tables import Row, rows_of

NAME = "webqa"
REPOSITORY = "stanfordnlp/web_questions"
INSTRUCTION = "Answer the question with a short fact and nothing else."
# Names of files in a folder, without suffix. `<name>-00000-of-00002.parquet` and the like count
# too, also in a folder `data`: so they lie in a copy of the hub's repository.
FILES = {
    "test": (("web_questions_test", "test"), "test questions"),
    "train": (("web_questions_train", "train"), NO_EXAMPLES),
}


@register_dataset(
    NAME, options=("data_dir", "dataset_revision", "paraphrase_model"), repository=REPOSITORY
)
def open_webqa(options: DatasetOptions) -> Dataset:
    """WebQuestions with the paraphrases of --paraphrase_model, else of the run's own model."""
    source = WebQADataset(
        data_dir=options.data_dir,
        revision=options.dataset_revision,
        paraphrase_model=None if options.original else options.paraphrase_model or options.model,
        run_model=options.model,
    )
    return source.load(
        max_samples=options.max_samples,
        needs_few_shot=options.needs_few_shot,
        fewer=options.fewer,
    )


@dataclass(frozen=True)
class WebQADataset:
    """WebQuestions: the test questions, and demonstrations from its 3,778 training questions.

    Args:
        data_dir: a folder with the two tables as files; None: the hub.
        revision: branch, tag or commit on the hub.
        paraphrase_model: whose paraphrases are taken; None: the questions only.
        run_model: where it is another one, the dataset's name tells the two apart.
    """

    data_dir: Path | None = None
    revision: str | None = None
    paraphrase_model: str | None = None
    run_model: str | None = None

    @property
    def name(self) -> str:
        if self.paraphrase_model is None or self.paraphrase_model == self.run_model:
            return NAME
        return f"{NAME}-{safe_name(self.paraphrase_model)}"

    def load(
        self,
        *,
        max_samples: int | None = None,
        needs_few_shot: bool = True,
        fewer: str = FEWER[0],
    ) -> Dataset:
        """The records, and demonstrations where they are needed.

        fewer: where it is not ``error``, records may have no paraphrases.

        Raises:
            MissingParaphrases: there are none of some of the first `max_samples` questions.
            UserError: a table cannot be had.
        """
        read = self._reader()
        records = records_of(*read("test"), needs_answers=True)
        if self.paraphrase_model is not None:
            source = ParaphraseSource(NAME, self.paraphrase_model, self.data_dir, self.revision)
            records = add_paraphrases(records, source, max_samples=max_samples, fewer=fewer)
        few_shot: tuple[FewShot, ...] = ()
        if needs_few_shot:
            rows = read("train")[-1]
            few_shot = tuple(demonstration(*rows[i]) for i in draw_examples(len(rows)))
        return Dataset(self.name, records, few_shot, INSTRUCTION).first(max_samples)

    def _reader(self) -> Callable[[str], tuple[str, list[str], list[Row]]]:
        """Of a split: a name for messages, its columns, its rows."""
        if self.data_dir is None:
            splits = fetch(REPOSITORY, self.revision, asked_as=NAME)

            def read(split: str) -> tuple[str, list[str], list[Row]]:
                place, table = hub_table(splits, REPOSITORY, split)
                return place, table.column_names, rows_of(place, table)
        else:
            folder = checked_folder(self.data_dir)

            def read(split: str) -> tuple[str, list[str], list[Row]]:
                return read_files(needed_files(folder, *FILES[split]))

        return read
