"""Paraphrases from templates: every fact of a relation in the wordings written for the relation.

    [X] is located in [Y].  +  Lima, Peru   =   Lima is located in [MASK].

As ParaRel and MyriadLAMA are made (Elazar et al. 2021; Zhao et al. 2024). A table of templates has
the columns `relation` or `rel` and `template` or `pattern`. Each template has `[X]` in the
subject's place and, where it is a sentence with a gap, `[Y]` in the answer's; a question has none.

A table of facts has `relation` or `rel`, `subject`, `sub_label` or `sub_ent`, and right answers in
`answers` (a list), `answer` or `obj_label`. Rows of one relation and subject are one question, with
the answers of all of them and the uuid of the first.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from self_ensemble.data import Record
from self_ensemble.data.cells import checked_label, checked_text, checked_texts, is_missing, show
from self_ensemble.data.cloze import OBJECT, SUBJECT
from self_ensemble.data.records import sha256
from self_ensemble.data.tables import read_rows, require_columns
from self_ensemble.paraphrasing.words import MASK
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError

RELATION_COLUMNS = ("relation", "rel")
TEMPLATE_COLUMNS = ("template", "pattern")
SUBJECT_COLUMNS = ("subject", "sub_label", "sub_ent")
ANSWER_COLUMNS = ("answers", "answer", "obj_label")
SHOWN_RELATIONS = 5


def read_templates(path: Path) -> dict[str, list[str]]:
    """The templates of each relation, in the order of the table; none twice.

    White space at the ends is cut off, and counts as one space within.

    Raises:
        UserError: the file is no such table, or a template has no subject's place, or one twice.
    """
    found: dict[str, dict[str, None]] = {}
    used = (*RELATION_COLUMNS, *TEMPLATE_COLUMNS)
    columns, rows = read_rows(path, is_used=used.__contains__)
    relation_in, template_in = _chosen(path, columns, RELATION_COLUMNS, TEMPLATE_COLUMNS)
    for where, row in rows:
        relation = checked_text(row.get(relation_in), relation_in, where).strip()
        template = " ".join(checked_text(row.get(template_in), template_in, where).split())
        for slot, least in ((SUBJECT, 1), (OBJECT, 0)):
            count = template.count(slot)
            if count < least:
                raise UserError(f"{where}: the template {show(template)} has no {slot}")
            if count > 1:
                raise UserError(f"{where}: the template {show(template)} has {slot} more than once")
        found.setdefault(relation, {})[template] = None
    return {relation: list(templates) for relation, templates in found.items()}


def read_facts(path: Path, max_samples: int | None) -> list[Record]:
    """A record for each relation and subject, its paraphrases yet to be filled in.

    max_samples: the first so many; None: all. Its `question` is the subject.

    Raises:
        UserError: the file is no table of facts, or a cell says nothing.
    """
    used = (*RELATION_COLUMNS, *SUBJECT_COLUMNS, *ANSWER_COLUMNS, "uuid")
    columns, rows = read_rows(path, is_used=used.__contains__)
    relation_in, subject_in = _chosen(path, columns, RELATION_COLUMNS, SUBJECT_COLUMNS)
    answers: dict[tuple[str, str], dict[str, None]] = {}
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for where, row in rows:
        relation = checked_text(row.get(relation_in), relation_in, where).strip()
        subject = " ".join(checked_text(row.get(subject_in), subject_in, where).split())
        key = relation, subject
        if key not in first:
            uuid = checked_label(row.get("uuid"), "uuid", where)
            made = sha256("\n".join(key))[:15]
            first[key] = uuid or f"{relation}-{made}", where
        answers.setdefault(key, {}).update(dict.fromkeys(_answers(row, where)))
    records = [
        Record(uuid, (), tuple(answers[key]), question=key[1], relation=key[0], place=where)
        for key, (uuid, where) in first.items()
    ]
    return records[:max_samples]


def fill_templates(
    facts: Sequence[Record], templates: dict[str, list[str]], count: int | None
) -> list[Record]:
    """The facts in the first ``count`` wordings of their relations, None: all; the first of them
    is the question.

    Facts of a relation without templates are left out, and said: ParaRel has two such relations.

    Raises:
        UserError: no relation has any.
    """
    without = Counter(fact.relation for fact in facts if fact.relation not in templates)
    if without.total() == len(facts):
        raise UserError(
            f"no template is for any of the facts' relations ({_few(without)}); there are some for "
            f"{_few(templates)}"
        )
    if without:
        say(f"no templates for {_few(without)}: {without.total():,} questions are left out")
    filled = []
    for fact in facts:
        assert fact.relation is not None and fact.question is not None, fact
        if fact.relation not in templates:
            continue
        wordings = [
            template.replace(OBJECT, MASK).replace(SUBJECT, fact.question)
            for template in templates[fact.relation][:count]
        ]
        filled.append(
            Record(
                fact.uuid,
                tuple(wordings),
                fact.answers,
                question=wordings[0],
                relation=fact.relation,
                place=fact.place,
            )
        )
    return filled


def _few(names: Iterable[str | None]) -> str:
    shown = [show(name) for name in names]
    return ", ".join(shown[:SHOWN_RELATIONS]) + (", ..." if len(shown) > SHOWN_RELATIONS else "")


def _chosen(path: Path, columns: list[str], *names: tuple[str, ...]) -> list[str]:
    """Of each group of names the first that is a column."""
    for group in names:
        require_columns(path, columns, group)
    return [next(name for name in group if name in columns) for group in names]


def _answers(row: dict[str, Any], where: str) -> tuple[str, ...]:
    for column in ANSWER_COLUMNS:
        value = row.get(column)
        if isinstance(value, list) or (column == "answers" and not is_missing(value)):
            return checked_texts(value, column, where)
        if not is_missing(value):
            return (checked_text(value, column, where).strip(),)
    return ()
