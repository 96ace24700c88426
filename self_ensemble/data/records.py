"""Questions in several wordings, and what a dataset is made of."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from self_ensemble.data.cells import show_name
from self_ensemble.system.errors import UserError


@dataclass(frozen=True)
class Record:
    """A question: its wordings and what counts as right.

    Args:
        uuid: tells the question from all others of its dataset. Results are joined by it.
        paraphrases: the wordings, in the order in which --num_paraphrases and --indexs count them.
        answers: texts that are right, any one of them.
        question: the original wording where the source has one.
        relation: the kind of fact, such as P36; intervals are also computed over relations.
    """

    uuid: str
    paraphrases: tuple[str, ...]
    answers: tuple[str, ...]
    question: str | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        for name in ("paraphrases", "answers"):
            texts = getattr(self, name)
            assert not isinstance(texts, str), f"{name} is one text, not a list of them: {texts!r}"
            object.__setattr__(self, name, tuple(texts))


@dataclass(frozen=True)
class FewShot:
    """A few-shot demonstration: a question that the prompt shows with its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dataset:
    """What a source gives.

    Args:
        name: goes into the path of the results.
        records: the questions.
        few_shot: demonstrations to choose from; a prompt shows the first --num_few_shot of them.
        instruction: what a prompt begins with, unless --instruction says otherwise.
        fingerprint: sha256 of the content of all the source's records, also of those that `first`
            leaves out, so that a run can be extended. Left empty, it is that of `records`.
    """

    name: str
    records: list[Record]
    few_shot: tuple[FewShot, ...] = ()
    instruction: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self.records))

    def first(self, max_samples: int | None) -> "Dataset":
        """The first so many records (None: all), with the fingerprint of all."""
        return replace(self, records=self.records[:max_samples])


def select_paraphrases(
    records: Iterable[Record], *, num_paraphrases: int, indexs: Sequence[int] | None
) -> list[Record]:
    """The records with the first `num_paraphrases` paraphrases, or with those at `indexs`.

    Raises:
        UserError: a record has too few, or an index is negative or doubled.
    """
    if indexs is not None:
        _check_indexs(indexs)
    chosen = tuple(range(num_paraphrases)) if indexs is None else tuple(indexs)
    assert chosen, f"no paraphrases chosen: num_paraphrases {num_paraphrases}, indexs {indexs}"
    if indexs is None:
        asked, remedy = f"{num_paraphrases} paraphrases were asked for", "; see --num_paraphrases"
    else:
        asked, remedy = f"--indexs asks for paraphrase {max(chosen)} (counted from 0)", ""
    selected = []
    for record in records:
        if len(record.paraphrases) <= max(chosen):
            found = len(record.paraphrases)
            first = show_name(record.paraphrases[0])
            raise UserError(
                f"{asked}, but question {show_name(record.uuid)} has {found} ({first}){remedy}"
            )
        paraphrases = tuple(record.paraphrases[index] for index in chosen)
        selected.append(replace(record, paraphrases=paraphrases))
    return selected


def _check_indexs(indexs: Sequence[int]) -> None:
    for position, index in enumerate(indexs):
        if index < 0:
            raise UserError(f"--indexs: {index} is negative (paraphrases are counted from 0)")
        if index in indexs[:position]:
            raise UserError(f"--indexs: {index} is named twice")


def question_uuid(question: str) -> str:
    """The uuid of a question that has none of its own: 32 hex digits of the text's sha256."""
    return sha256(question)[:32]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _fingerprint(records: Iterable[Record]) -> str:
    content = [[r.uuid, r.paraphrases, r.answers, r.question, r.relation] for r in records]
    return sha256(compact_json(content))
