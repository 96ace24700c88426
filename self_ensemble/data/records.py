"""Questions in several wordings, and what a dataset is made of."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from self_ensemble.data.cells import show, show_name, show_names
from self_ensemble.data.names import FEWER
from self_ensemble.system.errors import UserError

# Of the uuids that a dataset has, so many are named.
SHOWN_UUIDS = 3


@dataclass(frozen=True, slots=True)
class Record:
    """A question: its wordings and what counts as right.

    Args:
        uuid: tells the question from all others of its dataset. Results are joined by it.
        paraphrases: the wordings, in the order in which --num_paraphrases and --indexs count them.
            There may be none: see `select_paraphrases`.
        answers: texts that are right, any one of them; none where it is not known.
        question: the original wording where the source has one.
        relation: the kind of fact, such as P36; intervals are also computed over relations.
        choices: two or more texts, of which `answers` are some; none where the question is open.
        place: where it stands, such as `line 3 of questions.jsonl`, for errors alone. Two records
            are equal wherever they stand.
    """

    uuid: str
    paraphrases: tuple[str, ...]
    answers: tuple[str, ...] = ()
    question: str | None = None
    relation: str | None = None
    choices: tuple[str, ...] = ()
    place: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("paraphrases", "answers", "choices"):
            texts = getattr(self, name)
            assert not isinstance(texts, str), f"{name} is one text, not a list of them: {texts!r}"
            object.__setattr__(self, name, tuple(texts))

    @property
    def where(self) -> str:
        """What a sentence about it begins with."""
        uuid = show_name(self.uuid)
        return f"{self.place} (uuid {uuid})" if self.place else f"question {uuid}"


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
        choices_fingerprint: the same of their choices, on which no generated answer depends; empty
            where there are none.
    """

    name: str
    records: list[Record]
    few_shot: tuple[FewShot, ...] = ()
    instruction: str = ""
    fingerprint: str = ""
    choices_fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self.records))
        if not self.choices_fingerprint and any(record.choices for record in self.records):
            choices = _sha256_of_list(record.choices for record in self.records)
            object.__setattr__(self, "choices_fingerprint", choices)

    def first(self, max_samples: int | None) -> "Dataset":
        """The first so many records (None: all), with the fingerprints of all."""
        return replace(self, records=self.records[:max_samples])


def select_paraphrases(
    records: Iterable[Record],
    *,
    num_paraphrases: int,
    indexs: Sequence[int] | None,
    fewer: str = FEWER[0],
) -> list[Record]:
    """The records with the first `num_paraphrases` paraphrases, or with those at `indexs`.

    fewer: what becomes of a record that lacks some of them: ``error`` refuses all, ``use`` takes
        those that it has, ``skip`` leaves it out. One that is left with none is left out by both.

    Raises:
        UserError: a record has too few and `fewer` is ``error``, no record is left, or an index is
            negative or doubled.
    """
    assert fewer in FEWER, fewer
    if indexs is not None:
        _check_indexs(indexs)
    chosen = tuple(range(num_paraphrases)) if indexs is None else tuple(indexs)
    assert chosen, f"no paraphrases chosen: num_paraphrases {num_paraphrases}, indexs {indexs}"
    records = list(records)
    short = [record for record in records if len(record.paraphrases) <= max(chosen)]
    if short and fewer == "error":
        raise UserError(_lacking(short, num_paraphrases, indexs))
    selected = []
    for record in records:
        there = tuple(index for index in chosen if index < len(record.paraphrases))
        if there and (fewer == "use" or len(there) == len(chosen)):
            paraphrases = tuple(record.paraphrases[index] for index in there)
            same = paraphrases == record.paraphrases  # a million records need not be there twice
            selected.append(record if same else replace(record, paraphrases=paraphrases))
    if not selected:
        what = "any paraphrase" if fewer == "use" else "as many paraphrases"
        raise UserError(
            f"--fewer {fewer} leaves no question: none of {len(records)} has {what}; "
            f"{short[0].where} has {len(short[0].paraphrases) or 'none'}"
        )
    return selected


def _lacking(short: Sequence[Record], num_paraphrases: int, indexs: Sequence[int] | None) -> str:
    if indexs is None:
        asked = f"{num_paraphrases} paraphrases were asked for"
        flag = "--num_paraphrases asks for fewer"
    else:
        asked = f"--indexs asks for paraphrase {max(indexs)} (counted from 0)"
        flag = "--indexs can ask for others"
    also = f" ({len(short)} questions have too few)" if len(short) > 1 else ""
    return (
        f"{asked}, but {short[0].where} has {len(short[0].paraphrases) or 'none'}{also}: "
        f"paraphrase.py makes more, {flag}, --fewer use takes what each question has, --fewer skip "
        "leaves such questions out"
    )


def indexs_taken(indexs: Sequence[int], count: int) -> tuple[int, ...]:
    """Which of `indexs` the paraphrases of a selected record are, where it has so many of them.

    A record lacks its last paraphrases, so those that it has are the lowest, in the order asked
    for: of 4, 0 and 2 a record with two of them has 0 and 2.
    """
    lowest = sorted(indexs)[:count]
    return tuple(index for index in indexs if index in lowest)


def check_all_or_none_answered(records: Sequence[Record]) -> None:
    """Raises UserError where some records have answers and some have none.

    A score over those alone that have them would not say so.
    """
    without = [record for record in records if not record.answers]
    if without and len(without) < len(records):
        raise UserError(
            f"{without[0].where} has no answers, and other questions have: give it some, or give "
            "none to any"
        )


def original_wording(record: Record) -> str:
    """The column `question`, else paraphrase 0.

    Raises:
        UserError: there is neither.
    """
    if record.question is None and not record.paraphrases:
        raise UserError(f"{record.where} has no paraphrases and no question")
    return record.question or record.paraphrases[0]


def _check_indexs(indexs: Sequence[int]) -> None:
    for position, index in enumerate(indexs):
        if index < 0:
            raise UserError(f"--indexs: {index} is negative (paraphrases are counted from 0)")
        if index in indexs[:position]:
            raise UserError(f"--indexs: {index} is named twice")


def check_choices(records: Sequence[Record]) -> None:
    """Raises UserError where a record has one choice only, or one of them twice.

    Of equal choices the later one could never be taken, right or not.
    """
    for record in records:
        if len(record.choices) == 1:
            found = show(record.choices[0])
            raise UserError(f"{record.where}: choices must be two or more, found {found} alone")
    doubled = [record for record in records if len(set(record.choices)) < len(record.choices)]
    if doubled:
        choices = doubled[0].choices
        at = next(i for i, choice in enumerate(choices) if choice in choices[:i])
        also = f" ({len(doubled)} questions have a choice twice)" if len(doubled) > 1 else ""
        raise UserError(
            f"{doubled[0].where}: choices[{at}] is {show(choices[at])}, like "
            f"choices[{choices.index(choices[at])}]{also}; leave one of them, or the question, out"
        )


def require_choices(records: Sequence[Record]) -> None:
    """Raises UserError where a record has no choices, or an answer that is none of them.

    Where choices are scored; generated answers may be compared with other texts.
    """
    for record in records:
        if not record.choices:
            raise UserError(f"{record.where} has no choices")
        for answer in record.answers:
            if answer not in record.choices:
                raise UserError(
                    f"{record.where}: the answer {show(answer)} is none of the choices: "
                    f"{show_names(record.choices)}"
                )


def record_with(uuid: str, dataset: Dataset) -> Record:
    """The record of a dataset with this uuid.

    Raises:
        UserError: there is none; the uuids most like it are named, else the first ones.
    """
    by_uuid = {record.uuid: record for record in dataset.records}
    if uuid in by_uuid:
        return by_uuid[uuid]
    near = get_close_matches(uuid, by_uuid, n=SHOWN_UUIDS)
    shown = near or list(by_uuid)[:SHOWN_UUIDS]
    named = ", ".join(map(show_name, shown))
    found = f"near it are {named}" if near else f"there are {named}"
    more = "" if near or len(by_uuid) <= SHOWN_UUIDS else ", …"
    raise UserError(
        f"--uuid: none of the {len(by_uuid)} questions of {dataset.name} has the uuid "
        f"{show(uuid)}; {found}{more}"
    )


def question_uuid(question: str) -> str:
    """The uuid of a question that has none of its own: 32 hex digits of the text's sha256."""
    return sha256(question)[:32]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _fingerprint(records: Iterable[Record]) -> str:
    return _sha256_of_list(
        [r.uuid, r.paraphrases, r.answers, r.question, r.relation] for r in records
    )


def _sha256_of_list(values: Iterable[Any]) -> str:
    """`sha256(compact_json([*values]))`, of which no more than a value is in memory at a time."""
    digest = hashlib.sha256(b"[")
    for number, value in enumerate(values):
        digest.update((b"," if number else b"") + compact_json(value).encode("utf-8"))
    digest.update(b"]")
    return digest.hexdigest()
