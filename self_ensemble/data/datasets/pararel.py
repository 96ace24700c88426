"""ParaRel: facts of T-REx in up to 20 wordings each, which people wrote for the relations.

    ParaRelDataset(Path("pararel")).load(max_samples=100)

Elazar et al. 2021, "Measuring and Improving Consistency in Pretrained Language Models" (TACL).
The folder is a clone of their repository, or holds its content as two tables: pararel_templates
(columns `relation`, `pattern`) and pararel_facts (`relation`, `sub_label`, `obj_label`).

* A question is a relation and a subject; each object that the facts give is a right answer. Facts
  listed twice, and subjects of one name, are one question. Relations without templates are left
  out, and said.
* Wordings stand in the published order and are not drawn, as there are few: --num_paraphrases takes
  the first, and --indexs 2 is the same template for all facts of a relation.
* Questions are ordered by a hash of relation and subject, so that the first 100 are a sample of all
  relations, and the same ones whatever the order of files and rows.
* Demonstrations are the last facts of that order, and no questions. None of them states what is
  asked elsewhere: the same subject and object, in either order, stand in no other fact.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from self_ensemble.data.cells import checked_text, show
from self_ensemble.data.cloze import INSTRUCTION, OBJECT, SUBJECT, check_template, fill
from self_ensemble.data.hub_tables import NUM_FEW_SHOT, checked_folder, find_files
from self_ensemble.data.records import Dataset, FewShot, Record, sha256
from self_ensemble.data.registry import DatasetOptions, register_dataset
from self_ensemble.data.tables import TABLE_SUFFIXES, read_rows, require_columns
from self_ensemble.system.console import say, say_if_slow
from self_ensemble.system.errors import UserError

NAME = "pararel"
SOURCE = "https://github.com/yanaiela/pararel"
# P17.jsonl: the facts, or the templates, of one relation.
RELATION_FILE = re.compile(r"(P\d+)\.jsonl")
# Of so many facts one is a demonstration, up to NUM_FEW_SHOT of them.
FACTS_PER_EXAMPLE = 10


@dataclass(frozen=True)
class Part:
    """Facts or templates: the table that holds them, or the folder with a file a relation."""

    what: str
    table: str
    folder: str
    columns: tuple[str, ...]


FACTS = Part("facts", "pararel_facts", "trex_lms_vocab", ("sub_label", "obj_label"))
TEMPLATES = Part("templates", "pararel_templates", "pattern_data/graphs_json", ("pattern",))


@register_dataset(NAME, options=("data_dir",), source=SOURCE)
def open_pararel(options: DatasetOptions) -> Dataset:
    """ParaRel from the folder --data_dir."""
    if options.data_dir is None:
        raise UserError(
            f"--dataset {NAME} is not on the hub: git clone {SOURCE}, and name the folder with "
            "--data_dir"
        )
    return ParaRelDataset(options.data_dir).load(
        max_samples=options.max_samples, needs_few_shot=options.needs_few_shot
    )


@dataclass(frozen=True)
class Fact:
    """What is asked of a subject, with all objects that are right, in the order of the source."""

    relation: str
    subject: str
    objects: tuple[str, ...]
    place: str

    @cached_property
    def digest(self) -> str:
        return sha256(f"{self.relation}\n{self.subject}")[:15]

    def record(self, templates: Sequence[str]) -> Record:
        wordings = tuple(fill(each, self.subject, self.place) for each in templates)
        return Record(
            f"{self.relation}-{self.digest}",
            wordings,
            self.objects,
            question=wordings[0],
            relation=self.relation,
            place=self.place,
        )

    def example(self, templates: Sequence[str]) -> FewShot:
        return FewShot(fill(templates[0], self.subject, self.place), self.objects[0])

    def pairs(self) -> Iterator[frozenset[str]]:
        """Subject and object in no order: `Lima`, `Peru` is the capital of, and has the capital."""
        for each in self.objects:
            yield frozenset((self.subject.casefold(), each.casefold()))


@dataclass(frozen=True)
class ParaRelDataset:
    """ParaRel: facts of T-REx with the wordings that were written for their relations.

    Args:
        data_dir: a clone of the repository, its folder `data`, or a folder with the two tables.
    """

    data_dir: Path
    name = NAME

    def load(self, *, max_samples: int | None = None, needs_few_shot: bool = True) -> Dataset:
        """The records, each with all wordings of its relation, and demonstrations where needed.

        The same facts are held out as demonstrations whether they are needed or not.

        Raises:
            UserError: there is no such folder, a file is missing, damaged or not ParaRel's, or no
                relation has both facts and templates.
        """
        folder = checked_folder(self.data_dir)
        with say_if_slow(f"reading {folder}"):
            templates = read_templates(find_part(folder, TEMPLATES))
            facts = read_facts(find_part(folder, FACTS))
            _say_left_out(facts, templates)
            asked = sorted(
                (fact for fact in facts if fact.relation in templates),
                key=lambda fact: (fact.digest, fact.relation),
            )
            if not asked:
                raise UserError(f"--data_dir: of {folder}, no relation has facts and templates")
            shown = choose_examples(asked)
            held_out = set(shown)
            records = [
                fact.record(templates[fact.relation]) for fact in asked if fact not in held_out
            ]
            few_shot = [
                fact.example(templates[fact.relation]) for fact in (shown if needs_few_shot else ())
            ]
            return Dataset(NAME, records, tuple(few_shot), INSTRUCTION).first(max_samples)


def find_part(folder: Path, part: Part) -> list[Path]:
    """The files of facts or of templates.

    Raises:
        UserError: there are none, several to choose from, or files of other names among them.
    """
    table = find_files(folder, (part.table,))
    places = [root / part.folder for root in (folder / "data", folder)]
    found = [place for place in places if place.is_dir()] + table[:1]
    if len(found) > 1:
        raise UserError(
            f"--data_dir: {folder} holds both {found[0].relative_to(folder)} and "
            f"{found[1].relative_to(folder)}; which of them is meant cannot be told"
        )
    if not found:
        raise UserError(
            f"--data_dir: {folder} holds no {part.what} of ParaRel: neither a folder "
            f"data/{part.folder}, as {SOURCE} has it, nor a table {part.table} "
            f"({', '.join(TABLE_SUFFIXES)})"
        )
    return table or _relation_files(found[0])


def _relation_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"--data_dir: {folder} holds no file of a relation, such as P17.jsonl")
    for path in files:
        if not RELATION_FILE.fullmatch(path.name):
            raise UserError(
                f"--data_dir: {path} is named after no relation, as P17.jsonl is; move it away"
            )
    return files


def read_templates(files: Iterable[Path]) -> dict[str, list[str]]:
    """The templates of each relation, in the order of the file; none twice.

    White space at the ends is cut off and counts as one space within: two patterns have it doubled,
    and one ends in it.
    """
    templates: dict[str, dict[str, None]] = {}
    for relation, (pattern,), where in _read(files, TEMPLATES):
        check_template(pattern, where)
        for slot in (SUBJECT, OBJECT):
            if pattern.count(slot) > 1:
                raise UserError(f"{where}: the template {show(pattern)} has {slot} more than once")
        templates.setdefault(relation, {})[pattern] = None
    return {relation: list(patterns) for relation, patterns in templates.items()}


def read_facts(files: Iterable[Path]) -> list[Fact]:
    """A fact for each relation and subject; its place is that of its first row."""
    objects: dict[tuple[str, str], dict[str, None]] = {}
    places: dict[tuple[str, str], str] = {}
    for relation, (subject, answer), where in _read(files, FACTS):
        objects.setdefault((relation, subject), {})[answer] = None
        places.setdefault((relation, subject), where)
    return [Fact(*key, tuple(answers), places[key]) for key, answers in objects.items()]


def _read(files: Iterable[Path], part: Part) -> Iterator[tuple[str, list[str], str]]:
    """Of each row the relation, the part's columns, and the place in words."""
    for path in files:
        of_file = RELATION_FILE.fullmatch(path.name)
        used = part.columns if of_file else ("relation", *part.columns)
        columns, rows = read_rows(path, is_used=used.__contains__)
        for column in used:
            require_columns(path, columns, (column,))
        for where, row in rows:
            texts = [" ".join(checked_text(row.get(c), c, where).split()) for c in used]
            yield (of_file[1], texts, where) if of_file else (texts[0], texts[1:], where)


def choose_examples(facts: Sequence[Fact]) -> list[Fact]:
    """Which facts are demonstrations: see the top of this module.

    Facts of one object, so that the answer shown is the only one, and none that can be read off the
    subject, such as the country of Kuwait City.
    """
    stated = Counter(pair for fact in facts for pair in fact.pairs())
    wanted = min(NUM_FEW_SHOT, len(facts) // FACTS_PER_EXAMPLE)
    shown: list[Fact] = []
    for fact in reversed(facts):
        if len(shown) == wanted:
            break
        is_told = fact.objects[0].casefold() in fact.subject.casefold()
        if len(fact.objects) == 1 and not is_told and all(stated[p] == 1 for p in fact.pairs()):
            shown.append(fact)
    return shown


def _say_left_out(facts: Sequence[Fact], templates: dict[str, list[str]]) -> None:
    """Relations of which one part is missing: as published two have no templates."""
    without = Counter(fact.relation for fact in facts if fact.relation not in templates)
    if without:
        say(
            f"{NAME}: no templates for {', '.join(without)}: {without.total():,} questions are "
            "left out"
        )
    unused = templates.keys() - {fact.relation for fact in facts}
    if unused:
        say(f"{NAME}: no facts for {', '.join(sorted(unused))}")
