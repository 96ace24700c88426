"""MyriadLAMA: facts as sentences with [MASK] in the answer's place, in many wordings each.

    MyriadLamaDataset(data_dir=None, revision=None, draw=Draw(num_manual=5)).load(max_samples=100)

Zhao et al. 2024, "What Matters in Memorizing and Recalling Facts? Multifaceted Benchmarks for
Knowledge Probing in Language Models".

The table has a row for each template of each fact, written by hand or automatically. Which facts
are the test questions, and which of the others are shown as demonstrations, is what its authors'
predictions were made with. Of a fact's paraphrases some are drawn: the order of their hashes with
the seed and the fact's uuid decides, so that a draw depends on nothing else, neither the order of
questions nor of rows. Whoever asks for three of them gets the first three of five.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data.cells import checked_label, checked_text, checked_texts, is_empty
from self_ensemble.data.cloze import INSTRUCTION, fill
from self_ensemble.data.hub_tables import (
    NO_EXAMPLES,
    checked_folder,
    draw_examples,
    fetch,
    find_files,
    hub_table,
    needed_files,
    read_files,
)
from self_ensemble.data.names import DEFAULT_NUM_AUTO, DEFAULT_NUM_MANUAL, DEFAULT_SEED, FEWER
from self_ensemble.data.question_files import load_few_shot, records_of
from self_ensemble.data.records import Dataset, FewShot, Record, sha256
from self_ensemble.data.registry import DatasetOptions, register_dataset
from self_ensemble.data.tables import (
    ARROW_SUFFIXES,
    Row,
    error_line,
    read_arrow,
    read_rows,
    require_columns,
    rows_of,
)
from self_ensemble.system.console import say_if_slow
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow

NAME = "myriadlama"
REPOSITORY = "iszhaoxin/MyriadLAMA"
# The split, as the authors of the published predictions made it.
NUM_TEST_FACTS = 2_000
SPLIT_SEED = 42

FACT_COLUMNS = ("uuid", "rel_uri", "sub_ent", "obj_aliases", "template", "is_manual")
# Names of files in a folder, without suffix: see webqa.py.
FACTS = ("myriadlama", "train")
SAMPLE = ("myriadlama_sample", "test")
EXAMPLES = ("myriadlama_fewshot_examples", "few_shot")


@register_dataset(
    NAME,
    options=("data_dir", "dataset_revision", "num_manual", "num_auto", "seed"),
    repository=REPOSITORY,
)
def open_myriadlama(options: DatasetOptions) -> Dataset:
    """MyriadLAMA with --num_manual and --num_auto paraphrases of each fact, drawn with --seed."""
    draw = None
    if not options.original:
        draw = Draw.of(options.num_manual, options.num_auto, options.seed)
        draw.check(options.num_paraphrases, options.indexs)
    source = MyriadLamaDataset(options.data_dir, options.dataset_revision, draw)
    return source.load(
        max_samples=options.max_samples,
        needs_few_shot=options.needs_few_shot,
        fewer=options.fewer,
    )


@dataclass(frozen=True)
class Draw:
    """How many paraphrases of a fact are drawn, and from which seed."""

    num_manual: int = DEFAULT_NUM_MANUAL
    num_auto: int = DEFAULT_NUM_AUTO
    seed: int = DEFAULT_SEED

    @classmethod
    def of(cls, num_manual: int | None, num_auto: int | None, seed: int | None) -> "Draw":
        """None: the default."""
        given = {"num_manual": num_manual, "num_auto": num_auto, "seed": seed}
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def suffix(self) -> str:
        """Of the dataset's name: what differs from the default."""
        counts = (self.num_manual, self.num_auto)
        is_usual = counts == (DEFAULT_NUM_MANUAL, DEFAULT_NUM_AUTO)
        drawn = "" if is_usual else f"-m{self.num_manual}a{self.num_auto}"
        return drawn + ("" if self.seed == DEFAULT_SEED else f"-seed{self.seed}")

    def check(self, num_paraphrases: int, indexs: Sequence[int] | None) -> None:
        """Raises UserError where more paraphrases are asked for than are drawn."""
        total = self.num_manual + self.num_auto
        drawn = f"--num_manual {self.num_manual} and --num_auto {self.num_auto} draw {total}"
        if indexs is not None and max(indexs) >= total:
            raise UserError(f"--indexs asks for paraphrase {max(indexs)} (from 0), but {drawn}")
        if indexs is None and num_paraphrases > total:
            raise UserError(f"--num_samples {num_paraphrases} is too many: {drawn}")


@dataclass(frozen=True)
class Fact:
    """A fact of MyriadLAMA: all its paraphrases, in the order of the source."""

    uuid: str
    relation: str | None
    answers: tuple[str, ...]
    manual: tuple[str, ...]
    auto: tuple[str, ...]
    place: str = ""

    @property
    def question(self) -> str | None:
        """The wording that stands for the fact: in a demonstration, and for the method origin."""
        return next(iter(self.manual or self.auto), None)

    def record(self, draw: Draw | None, *, fewer: str = FEWER[0]) -> Record:
        """With the paraphrases of a draw, or with the one wording. fewer: see `drawn`."""
        question = self.question
        paraphrases: tuple[str, ...] = () if question is None else (question,)
        if draw is not None:
            paraphrases = self.drawn(draw, fewer=fewer)
        return Record(
            self.uuid, paraphrases, self.answers, question, self.relation, place=self.place
        )

    def drawn(self, draw: Draw, *, fewer: str = FEWER[0]) -> tuple[str, ...]:
        """Manual and automatic paraphrases, mixed: any first S of them are a draw of S.

        fewer: where there are fewer of a kind than are drawn, ``use`` takes all of them, and
            ``skip`` draws nothing, so that the fact is left out.

        Raises:
            UserError: there are fewer, and `fewer` is ``error``.
        """
        pool = []
        where = f"{self.place} (uuid {self.uuid})" if self.place else f"question {self.uuid}"
        for kind, texts, count in (
            ("manual", self.manual, draw.num_manual),
            ("auto", self.auto, draw.num_auto),
        ):
            if len(texts) < count and fewer == "skip":
                return ()
            if len(texts) < count and fewer == "error":
                raise UserError(
                    f"--num_{kind} {count}: {where} has {len(texts)} such "
                    "paraphrases; ask for fewer, take what each question has with --fewer use, or "
                    "leave such questions out with --fewer skip"
                )
            pool += self._in_drawn_order(texts, draw.seed, kind)[:count]
        return tuple(self._in_drawn_order(pool, draw.seed, "samples"))

    def _in_drawn_order(self, texts: Iterable[str], seed: int, what: str) -> list[str]:
        return sorted(texts, key=lambda text: sha256(f"{seed}\n{what}\n{self.uuid}\n{text}"))


@dataclass(frozen=True)
class MyriadLamaDataset:
    """MyriadLAMA: sentences with [MASK] in the answer's place; 2,000 of its facts are the test.

    Args:
        data_dir: a folder of files, with the hub's columns (a row a template), or with those of a
            sample (a row a fact: `manual_paraphrases`, `auto_paraphrases`); None: the hub.
        revision: branch, tag or commit on the hub.
        draw: which paraphrases; None: one wording, the first manual one.
    """

    data_dir: Path | None = None
    revision: str | None = None
    draw: Draw | None = Draw()

    @property
    def name(self) -> str:
        return NAME + ("" if self.draw is None else self.draw.suffix)

    def load(
        self,
        *,
        max_samples: int | None = None,
        needs_few_shot: bool = True,
        fewer: str = FEWER[0],
    ) -> Dataset:
        """The records, and demonstrations where they are needed.

        fewer: what becomes of a fact that has fewer paraphrases than are drawn: see `Fact.drawn`.

        Raises:
            UserError: a table cannot be had, or a fact has fewer paraphrases than are drawn.
        """
        test, few_shot = self._facts(needs_few_shot)
        records = [fact.record(self.draw, fewer=fewer) for fact in test]
        return Dataset(self.name, records, few_shot, INSTRUCTION).first(max_samples)

    def _facts(self, needs_few_shot: bool) -> tuple[list[Fact], tuple[FewShot, ...]]:
        if self.data_dir is None:
            splits = fetch(REPOSITORY, self.revision, asked_as=NAME)
            place, table = hub_table(splits, REPOSITORY, "train")
            return split_facts(place, typed_facts(place, table))
        folder = checked_folder(self.data_dir)
        sample = find_files(folder, SAMPLE)
        if not sample:
            files = needed_files(folder, (*FACTS, *SAMPLE), "facts")
            with say_if_slow(f"reading {files[0].parent}"):
                return split_facts(*read_fact_table(files))
        return sample_facts(sample), sample_examples(folder) if needs_few_shot else ()


def split_facts(place: str, table: "pyarrow.Table") -> tuple[list[Fact], tuple[FewShot, ...]]:
    """The test questions and the demonstrations of the whole table.

    The facts in the order of their uuids are permuted; the first 2,000 are the test. Only the facts
    that are used become Python objects: the table has millions of rows.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute

    if table["uuid"].null_count:
        raise UserError(f"{place} has rows without a uuid")
    uuids = sorted(table["uuid"].unique().to_pylist())
    if len(uuids) <= NUM_TEST_FACTS:
        raise UserError(
            f"{place} has {len(uuids)} facts; of the whole table, more than {NUM_TEST_FACTS}, so "
            "many are the test questions"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(uuids))
    test = [uuids[i] for i in order[:NUM_TEST_FACTS]]
    train = order[NUM_TEST_FACTS:]
    shown = [uuids[train[i]] for i in draw_examples(len(train))]
    is_used = pa.compute.is_in(table["uuid"], value_set=pa.array(test + shown))
    facts = group_facts(place, table.filter(is_used))
    examples = tuple(_demonstration(facts[uuid]) for uuid in shown)
    return [facts[uuid] for uuid in test], examples


def group_facts(place: str, table: "pyarrow.Table") -> dict[str, Fact]:
    """A row a template -> facts by uuid; what belongs to the fact is taken from its first row."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for _, row in rows_of(place, table):
        groups.setdefault(row["uuid"], []).append(row)
    return {uuid: _fact_of_templates(f"fact {uuid} of {place}", g) for uuid, g in groups.items()}


def _fact_of_templates(where: str, rows: list[dict[str, Any]]) -> Fact:
    subject = checked_text(rows[0]["sub_ent"], "sub_ent", where)
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        template = checked_text(row["template"], "template", where)
        if row["is_manual"] is None:
            raise UserError(f"{where}: is_manual is empty")
        kinds[row["is_manual"]].append(fill(template, subject, where))
    return Fact(
        uuid=checked_text(rows[0]["uuid"], "uuid", where),
        relation=checked_label(rows[0]["rel_uri"], "rel_uri", where),
        answers=checked_texts(rows[0]["obj_aliases"], "obj_aliases", where),
        manual=_distinct(kinds[True]),
        auto=_distinct(kinds[False], without=kinds[True]),
    )


def _distinct(texts: Iterable[str], without: Collection[str] = ()) -> tuple[str, ...]:
    return tuple(text for text in dict.fromkeys(texts) if text not in without)


def read_fact_table(files: Sequence[Path]) -> tuple[str, "pyarrow.Table"]:
    """Files with the hub's columns as one table, with a name for messages."""
    import pyarrow as pa

    tables = []
    for path in files:
        if path.suffix in ARROW_SUFFIXES:
            _, table = read_arrow(path, is_used=FACT_COLUMNS.__contains__)
        else:
            table = _table_of_rows(path, *read_rows(path))
        tables.append(typed_facts(path, table))
    return str(files[0]), pa.concat_tables(tables)


def _table_of_rows(path: Path, columns: list[str], rows: list[Row]) -> "pyarrow.Table":
    import pyarrow as pa

    cells: dict[str, list[Any]] = {name: [row.get(name) for _, row in rows] for name in columns}
    if "obj_aliases" in cells:  # in CSV a list is written as JSON
        pairs = zip(cells["obj_aliases"], rows, strict=True)
        cells["obj_aliases"] = [list(checked_texts(c, "obj_aliases", at)) for c, (at, _) in pairs]
    used = [name for name in FACT_COLUMNS if name in cells]
    try:
        return pa.table({name: cells[name] for name in used})
    except pa.ArrowException as error:
        raise UserError(f"{path}: cells of a column differ in type: {error_line(error)}") from None


def typed_facts(place: Path | str, table: "pyarrow.Table") -> "pyarrow.Table":
    """The columns that are used, in the types of the hub's table."""
    import pyarrow as pa

    for column in FACT_COLUMNS:
        require_columns(place, table.column_names, (column,))
    types = dict.fromkeys(FACT_COLUMNS, pa.string())
    types |= {"obj_aliases": pa.list_(pa.string()), "is_manual": pa.bool_()}
    try:
        return table.select(FACT_COLUMNS).cast(pa.schema(types))
    except (pa.ArrowException, KeyError) as error:  # KeyError: a column twice
        raise UserError(f"{place} is not MyriadLAMA's table: {error_line(error)}") from None


def sample_facts(files: Sequence[Path]) -> list[Fact]:
    """The facts of a table with a row a fact."""
    place, columns, rows = read_files(files)
    for column in ("manual_paraphrases", "auto_paraphrases"):
        require_columns(place, columns, (column,))
    facts = []
    records = records_of(place, columns, rows, needs_answers=True)
    for record, (where, row) in zip(records, rows, strict=True):
        kinds = {}
        for column in ("manual_paraphrases", "auto_paraphrases"):
            value = row.get(column)
            kinds[column] = () if is_empty(value) else checked_texts(value, column, where)
        manual, auto = kinds.values()
        facts.append(
            Fact(
                uuid=record.uuid,
                relation=record.relation,
                answers=record.answers,
                manual=_distinct(manual),
                auto=_distinct(auto, without=manual),
                place=where,
            )
        )
    return facts


def sample_examples(folder: Path) -> tuple[FewShot, ...]:
    """Demonstrations beside a sample: a file of them, or training facts of the same form."""
    files = find_files(folder, EXAMPLES)
    if files:
        return tuple(shot for path in files for shot in load_few_shot(path))
    train = sample_facts(needed_files(folder, ("train", *EXAMPLES), NO_EXAMPLES))
    chosen = [train[i] for i in draw_examples(len(train))]
    return tuple(map(_demonstration, chosen))


def _demonstration(fact: Fact) -> FewShot:
    if fact.question is None:
        raise UserError(f"{fact.place or fact.uuid} has neither manual nor automatic paraphrases")
    return FewShot(fact.question, fact.answers[0])
