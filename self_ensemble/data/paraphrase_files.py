"""Paraphrases that a model wrote of a dataset's questions, and where they are kept.

paraphrase.py makes them, in `data/<dataset>/<model>/paraphrases.jsonl`. A dataset that has one
wording of each question takes them from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from self_ensemble.data.cells import checked_label, checked_text, checked_texts, show
from self_ensemble.data.names import DATA_ROOT, FEWER, PARAPHRASE_FILE
from self_ensemble.data.records import Record
from self_ensemble.data.result_files import safe_name
from self_ensemble.data.tables import read_rows, require_columns
from self_ensemble.system.errors import UserError

# Of the questions that a file of paraphrases lacks, so many are named.
SHOWN_LACKING = 3


@dataclass(frozen=True)
class ParaphraseSource:
    """Where the paraphrases of a dataset's questions are, and what they are made from.

    Args:
        dataset: its name, as --dataset has it.
        model: whose paraphrases, as paraphrase.py --model had it.
        data_dir, dataset_revision: where the questions are from, if they are not the hub's latest.
    """

    dataset: str
    model: str
    data_dir: Path | None = None
    dataset_revision: str | None = None

    @property
    def path(self) -> Path:
        return DATA_ROOT / self.dataset / safe_name(self.model) / PARAPHRASE_FILE


class MissingParaphrases(UserError):
    """There are no paraphrases of some questions. `cli` adds the command that makes them.

    Args:
        source: where they were looked for.
        lacking: the questions that have none; None where there is no file at all.
        asked: how many questions need paraphrases.
        total: how many the dataset has.
        were_dropped: some were drawn, and the quality filter left none of them.
    """

    def __init__(
        self,
        source: ParaphraseSource,
        *,
        lacking: Sequence[str] | None,
        asked: int,
        total: int,
        were_dropped: bool = False,
    ):
        self.source = source
        self.lacking, self.asked, self.total = lacking, asked, total
        self.were_dropped = were_dropped
        super().__init__(self.sentence("paraphrase.py makes them"))

    def sentence(self, remedy: str) -> str:
        """What lacks, and at the sentence's end what helps."""
        path = self.source.path
        if self.lacking is None:
            return f"there are no paraphrases {path}; {remedy}"
        named = ", ".join(map(show, self.lacking[:SHOWN_LACKING]))
        named += ", …" if len(self.lacking) > SHOWN_LACKING else ""
        return (
            f"{path} {'has no paraphrase left of' if self.were_dropped else 'lacks'} "
            f"{len(self.lacking)} of {self.asked} questions: {named} (--fewer skip leaves them "
            f"out); {remedy}"
        )


def add_paraphrases(
    records: Sequence[Record],
    source: ParaphraseSource,
    *,
    max_samples: int | None,
    fewer: str = FEWER[0],
) -> list[Record]:
    """The records with the paraphrases of a file, and their places there.

    Those behind `max_samples` may have none, and so may all where `fewer` is not ``error``: see
    `select_paraphrases`, which leaves them out.

    Raises:
        MissingParaphrases: there is no file, or it lacks some of the first `max_samples` questions.
        UserError: it is damaged, or is about other questions.
    """
    asked = records[:max_samples]
    missing = partial(MissingParaphrases, source, asked=len(asked), total=len(records))
    if not source.path.exists():
        raise missing(lacking=None)
    written = read_paraphrases(source.path, records)
    if fewer == "error":
        absent = [r.question or r.uuid for r in asked if r.uuid not in written]
        if absent:
            raise missing(lacking=absent)
        empty = [r.question or r.uuid for r in asked if not written[r.uuid].texts]
        if empty:
            raise missing(lacking=empty, were_dropped=True)
    added = []
    for record in records:
        found = written.get(record.uuid, Written(record.place, ()))
        added.append(replace(record, paraphrases=found.texts, place=found.place))
    return added


@dataclass(frozen=True)
class Written:
    """A question's line in a file of paraphrases; no texts where none was good enough."""

    place: str
    texts: tuple[str, ...]


def read_paraphrases(path: Path, records: Sequence[Record]) -> dict[str, Written]:
    """The lines of a file of paraphrase.py's by uuid.

    Raises:
        UserError: the file is damaged, or is about other questions than the records'.
    """
    questions = {record.uuid: record.question for record in records}
    columns, rows = read_rows(path)
    for column in ("uuid", "question", "paraphrases"):
        require_columns(path, columns, (column,))
    written: dict[str, Written] = {}
    for where, row in rows:
        uuid = checked_label(row.get("uuid"), "uuid", where)
        question = checked_text(row.get("question"), "question", where)
        if uuid is None or questions.get(uuid) != question:
            raise UserError(f"{where}: the dataset does not ask {show(question)}")
        if uuid in written:
            raise UserError(f"{where} has the uuid {uuid} like a line before it")
        texts = row.get("paraphrases")
        texts = () if texts == [] else checked_texts(texts, "paraphrases", where)
        written[uuid] = Written(where, texts)
    return written
