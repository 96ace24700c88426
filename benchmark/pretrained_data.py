"""The question sets of pretrained.py: development and test, fixed in the code by a sha256 each.

    myriadlama-dev   MyriadLAMA's 2,000 test facts, in its templates
    myriadlama-test  ParaRel's facts in MyriadLAMA's templates
    pararel-dev      ParaRel's facts in ParaRel's own templates, 11 of its relations
    pararel-test     the same of 15 other relations

No subject of a test question is that of a MyriadLAMA development fact or of a demonstration,
whatever its case. Where something is drawn, the order of hashes decides. The first questions of a
set are spread over its relations.

Every question has up to `MOST` paraphrases, and N of them are its first N. In MyriadLAMA's
templates the five manual ones come first, then automatic ones: of a development fact those that
its published predictions were made with, then its relation's templates in an order of its own. In
ParaRel's templates all come in such an order.

A question of ParaRel is a subject and a relation; the objects of all its facts are right, and
where an object is one that a development fact of the relation has, so are the aliases given there.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pretrained_files as files

from self_ensemble.data.datasets.myriadlama import INSTRUCTION, fill
from self_ensemble.data.prompts import Prompt
from self_ensemble.data.records import FewShot, compact_json, sha256
from self_ensemble.data.templates import prompt_template

if TYPE_CHECKING:
    import pandas

MOST = 20  # paraphrases of a question
MANUAL = 5
# Questions of each relation, or as many as there are.
MYRIADLAMA_TEST_OF_RELATION = 100
PARAREL_DEV_OF_RELATION, PARAREL_TEST_OF_RELATION = 200, 220
# ParaRel's relations with at least so many templates are asked; those with MANY of them serve
# N = 10 too, and are split apart from the others, so that development and test have both.
FEWEST_TEMPLATES, MANY = 5, 10
DEV_SHARE = 0.4  # of ParaRel's relations

DEMONSTRATIONS = (
    FewShot("[MASK] is the higher-level concept of adit.", "tunnel"),
    FewShot("Marty Ehrlich became known as a [MASK] player.", "saxophone"),
    FewShot(
        "Officially, the people living in Basel use the language [MASK] for communication.",
        "German",
    ),
    FewShot("[MASK] consists of Mount Makiling.", "Luzon"),
    FewShot("Iowa and [MASK] are neighboring countries.", "Wisconsin"),
)
DEMONSTRATED_SUBJECTS = ("adit", "Marty Ehrlich", "Basel", "Mount Makiling", "Iowa")


@dataclass(frozen=True)
class Question:
    """A fact, asked in up to `MOST` wordings; answers: texts that are right, any one of them."""

    uuid: str
    relation: str
    subject: str
    answers: tuple[str, ...]
    paraphrases: tuple[str, ...]


@dataclass(frozen=True)
class Tables:
    """The files of a folder, read: frames of pandas."""

    sample: "pandas.DataFrame"
    templates: "pandas.DataFrame"
    pararel_facts: "pandas.DataFrame"
    pararel_templates: "pandas.DataFrame"


def read_tables(folder: Path) -> Tables:
    """The four tables, each the very file that the sets are made of; and the prompt is checked.

    Raises:
        UserError: a file is not there or another one.
    """
    import pandas

    context = files.checked(folder, files.CONTEXT).read_text(encoding="utf-8").strip()
    ours = prompt_template(INSTRUCTION, DEMONSTRATIONS).head.removesuffix("Q: ").strip()
    assert context == ours, f"{files.CONTEXT.name} is not the prompt that stands here: {ours!r}"
    needed = (files.SAMPLE, files.TEMPLATES, files.PARAREL_FACTS, files.PARAREL_TEMPLATES)
    return Tables(*(pandas.read_parquet(files.checked(folder, file)) for file in needed))


def prompt(*, chat_template: bool = False) -> Prompt:
    """The prompt of MyriadLAMA's published predictions, for all sets."""
    return Prompt(INSTRUCTION, DEMONSTRATIONS, chat_template)


def normalized(subject: str) -> str:
    return " ".join(subject.casefold().split())


def in_order_of(seed: str, texts: Iterable[str]) -> list[str]:
    """Texts in an order that depends on each of them and a seed alone."""
    return sorted(texts, key=lambda text: sha256(f"{seed}\n{text}"))


def paraphrases_of(
    uuid: str, subject: str, first: Iterable[str], templates: Iterable[str]
) -> tuple[str, ...]:
    """Those given first, then templates filled with the subject in the uuid's own order."""
    filled = (fill(template, subject, uuid) for template in in_order_of(uuid, templates))
    return tuple(dict.fromkeys([*first, *filled]))[:MOST]


def myriadlama_dev(tables: Tables) -> Iterator[Question]:
    """In the sample's order."""
    automatic = _by_relation(tables.templates, is_manual=False)
    for row in tables.sample.itertuples():
        assert len(row.manual_paraphrases) == MANUAL, row.uuid
        shown = [*row.manual_paraphrases, *row.auto_paraphrases]
        yield Question(
            row.uuid,
            row.rel,
            row.sub_ent,
            tuple(row.answers),
            paraphrases_of(row.uuid, row.sub_ent, shown, automatic[row.rel]),
        )


def myriadlama_test(tables: Tables) -> list[Question]:
    """All relations that have MyriadLAMA's templates."""
    manual = _by_relation(tables.templates, is_manual=True)
    automatic = _by_relation(tables.templates, is_manual=False)

    def wordings(relation: str, uuid: str, subject: str) -> tuple[str, ...]:
        shown = [fill(template, subject, uuid) for template in manual[relation]]
        assert len(shown) == MANUAL, relation
        return paraphrases_of(uuid, subject, shown, automatic[relation])

    return _pararel_questions(tables, manual, MYRIADLAMA_TEST_OF_RELATION, wordings)


def pararel_dev(tables: Tables) -> list[Question]:
    """Of other relations than the test's."""
    dev, _ = _pararel_relations(tables)
    return _in_own_templates(tables, dev, PARAREL_DEV_OF_RELATION)


def pararel_test(tables: Tables) -> list[Question]:
    """Of the relations that development leaves."""
    _, test = _pararel_relations(tables)
    return _in_own_templates(tables, test, PARAREL_TEST_OF_RELATION)


def _pararel_relations(tables: Tables) -> tuple[list[str], list[str]]:
    counts = tables.pararel_templates["relation"].value_counts().to_dict()
    dev, test = [], []
    for least, most in ((FEWEST_TEMPLATES, MANY - 1), (MANY, max(counts.values()))):
        group = [relation for relation, count in counts.items() if least <= count <= most]
        group = in_order_of("split of relations", group)
        cut = round(DEV_SHARE * len(group))
        dev += group[:cut]
        test += group[cut:]
    return dev, test


def _in_own_templates(tables: Tables, relations: Collection[str], count: int) -> list[Question]:
    frame = tables.pararel_templates
    templates = {r: frame["pattern"][frame["relation"] == r].tolist() for r in relations}

    def wordings(relation: str, uuid: str, subject: str) -> tuple[str, ...]:
        return paraphrases_of(uuid, subject, (), templates[relation])

    return _pararel_questions(tables, relations, count, wordings)


def _pararel_questions(
    tables: Tables,
    relations: Collection[str],
    count: int,
    wordings: Callable[[str, str, str], tuple[str, ...]],
) -> list[Question]:
    """So many questions of each relation, mixed, none with a subject that development has."""
    taken = {normalized(s) for s in (*tables.sample["sub_ent"], *DEMONSTRATED_SUBJECTS)}
    aliases = _aliases(tables)
    groups: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for row in tables.pararel_facts.itertuples():
        if normalized(row.sub_label) not in taken:
            groups[row.relation][row.sub_label].append(row)
    questions = []
    for relation in sorted(relations):
        for subject in in_order_of(relation, groups[relation])[:count]:
            rows = groups[relation][subject]
            answers = (aliases.get((relation, r.obj_label), [r.obj_label]) for r in rows)
            uuid = rows[0].uuid
            right = tuple(dict.fromkeys(text for texts in answers for text in texts))
            wording = wordings(relation, uuid, subject)
            questions.append(Question(uuid, relation, subject, right, wording))
    return sorted(questions, key=lambda question: sha256(question.uuid))


def _aliases(tables: Tables) -> Mapping[tuple[str, str], list[str]]:
    """(relation, object's label) -> it, and all that development facts with it call it."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in tables.sample.itertuples():
        found[row.rel, row.answers[0]] += list(row.answers)
    return found


def _by_relation(templates: "pandas.DataFrame", *, is_manual: bool) -> dict[str, list[str]]:
    kind = templates[templates["is_manual"] == is_manual]
    return {relation: rows["template"].tolist() for relation, rows in kind.groupby("rel")}


@dataclass(frozen=True)
class QuestionSet:
    """How a set is made, and the `fingerprint` of what that must give."""

    make: Callable[[Tables], Iterable[Question]]
    sha256: str


SETS = {
    "myriadlama-dev": QuestionSet(
        myriadlama_dev, "51231907c8b6226be911d95e151ebe549c52dd431d9e15f3e2df4a46f995570e"
    ),
    "myriadlama-test": QuestionSet(
        myriadlama_test, "df350e8cf45b5d068f24c6e5aaaeb84e25b428ddaf269a9739160933242cb4b3"
    ),
    "pararel-dev": QuestionSet(
        pararel_dev, "af4ee4768a446410b64402d2c8fde6352c2f8383af792f1ca22896dd0ff6a47f"
    ),
    "pararel-test": QuestionSet(
        pararel_test, "5853bdecab67e532f1c49724205d6123c97faa2c4ee9a8ebed5aa21e7cce61a1"
    ),
}


def fingerprint(questions: Sequence[Question]) -> str:
    return sha256(compact_json([asdict(question) for question in questions]))


def questions_of(name: str, folder: Path) -> list[Question]:
    """A set by its name, made of the files of a folder and checked against its sha256.

    Raises:
        UserError: a file is not there or another one.
    """
    made = list(SETS[name].make(read_tables(folder)))
    found = fingerprint(made)
    assert found == SETS[name].sha256, f"the set {name} has changed: its sha256 is {found}"
    return made
