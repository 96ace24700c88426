"""WebQuestions and MyriadLAMA, from the hub or from a folder of files, as records.

    WebQADataset(data_dir=None, revision=None, paraphrase_model="demo").load(max_samples=100)

From the hub they come through the library `datasets`; a folder (--data_dir) holds the same tables
as files. The same tables give the same records, and so the same results, wherever they are from.

WebQuestions has one wording of each question. Its paraphrases are written by a model, with
paraphrase.py, into `data/webqa/<model>/paraphrases.jsonl`.

MyriadLAMA has a row for each template of each fact, written by hand or automatically. Which facts
are the test questions, and which of the others are shown as solved examples, is what its authors'
predictions were made with. Of a fact's paraphrases some are drawn: the order of their hashes with
the seed and the fact's uuid decides, so that a draw depends on nothing else, neither the order of
questions nor of rows. Whoever asks for three of them gets the first three of five.
"""

import random
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from self_ensemble.data.dataset import (
    READERS,
    Dataset,
    FewShot,
    Record,
    Row,
    checked_label,
    checked_text,
    checked_texts,
    fields_of,
    first_line,
    load_dataset,
    load_few_shot,
    read_rows,
    read_table,
    records_of,
    require_columns,
    rows_of,
    sha256,
    show,
    solved_example,
)
from self_ensemble.data.hub_tables import (
    checked_folder,
    fetch,
    find_files,
    hub_table,
    needed_files,
    read_files,
)
from self_ensemble.data.names import (
    DATA_ROOT,
    DEFAULT_NUM_AUTO,
    DEFAULT_NUM_MANUAL,
    DEFAULT_SEED,
    MYRIADLAMA_INSTRUCTION,
    MYRIADLAMA_REPOSITORY,
    PARAPHRASE_FILE,
    WEBQA_INSTRUCTION,
    WEBQA_REPOSITORY,
)
from self_ensemble.data.result_files import read_manifest, safe_name
from self_ensemble.system.console import say_if_slow
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow

# The split of MyriadLAMA, and the draw of solved examples for either dataset, as the authors of the
# published predictions made them.
NUM_TEST_FACTS = 2_000
SPLIT_SEED = FEW_SHOT_SEED = 42
# More solved examples than anyone shows. The first five are the same as if five were drawn.
NUM_FEW_SHOT = 64

# Of the questions that a file of paraphrases lacks, so many are named.
SHOWN_LACKING = 3

FACT_COLUMNS = ("uuid", "rel_uri", "sub_ent", "obj_aliases", "template", "is_manual")
NO_EXAMPLES = "solved examples (give --few_shot FILE, or --num_few_shot 0)"
# Names of files in a folder, without suffix. `<name>-00000-of-00002.parquet` and the like count
# too, also in a folder `data`: so they lie in a copy of the hub's repository.
WEBQA_FILES = {
    "test": (("web_questions_test", "test"), "test questions"),
    "train": (("web_questions_train", "train"), NO_EXAMPLES),
}
MYRIADLAMA_FACTS = ("myriadlama", "train")
MYRIADLAMA_SAMPLE = ("myriadlama_sample", "test")
MYRIADLAMA_EXAMPLES = ("myriadlama_fewshot_examples", "few_shot")


def open_dataset(args, *, original: bool) -> Dataset:
    """The dataset of a command line: the demo, a file, or one of the two here.

    Args:
        args: see `cli.add_common_arguments`.
        original: one wording each is enough, the column `question`.
    """
    needs_few_shot = args.few_shot is None and args.num_few_shot != 0
    if args.dataset == "webqa":
        source = WebQADataset(
            data_dir=args.data_dir,
            revision=args.dataset_revision,
            paraphrase_model=None if original else args.paraphrase_model or args.model,
            run_model=args.model,
        )
    elif args.dataset == "myriadlama":
        draw = Draw.of(args.num_manual, args.num_auto, args.seed)
        if not original:
            draw.check(args.num_paraphrases, args.indexs)
        source = MyriadLamaDataset(
            data_dir=args.data_dir,
            revision=args.dataset_revision,
            draw=None if original else draw,
        )
    else:
        return load_dataset(args.dataset, max_samples=args.max_samples)
    return source.load(max_samples=args.max_samples, needs_few_shot=needs_few_shot)


@dataclass(frozen=True)
class WebQADataset:
    """WebQuestions: 2,032 test questions, and solved examples from its 3,778 training questions.

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
        if self.paraphrase_model in (None, self.run_model):
            return "webqa"
        return f"webqa-{safe_name(self.paraphrase_model)}"

    @property
    def paraphrase_file(self) -> Path:
        return DATA_ROOT / "webqa" / safe_name(self.paraphrase_model) / PARAPHRASE_FILE

    def load(self, *, max_samples: int | None = None, needs_few_shot: bool = True) -> Dataset:
        """The records, and solved examples where they are needed.

        Raises:
            UserError: a table cannot be had, or there are no paraphrases of the first
                `max_samples` questions.
        """
        read = self._reader()
        records = records_of(*read("test"))
        if self.paraphrase_model is not None:
            records = self._with_paraphrases(records, max_samples)
        return Dataset(
            name=self.name,
            few_shot=_draw_examples(read("train")[-1]) if needs_few_shot else (),
            instruction=WEBQA_INSTRUCTION,
            **fields_of(records) | {"records": records[:max_samples]},
        )

    def _reader(self) -> Callable[[str], tuple[str, list[str], list[Row]]]:
        """Of a split: a name for messages, its columns, its rows."""
        if self.data_dir is None:
            splits = fetch(WEBQA_REPOSITORY, self.revision)

            def read(split: str):
                place, table = hub_table(splits, WEBQA_REPOSITORY, split)
                return place, table.column_names, rows_of(place, table)
        else:
            folder = checked_folder(self.data_dir)

            def read(split: str):
                return read_files(needed_files(folder, *WEBQA_FILES[split]))

        return read

    def _with_paraphrases(self, records: list[Record], max_samples: int | None) -> list[Record]:
        path = self.paraphrase_file
        if not path.exists():
            raise UserError(f"there are no paraphrases {path}; run: {self._command()}")
        paraphrases = read_paraphrases(path, records)
        asked = records[:max_samples]
        absent = [r for r in asked if r.uuid not in paraphrases]
        empty = [r for r in asked if paraphrases.get(r.uuid) == ()]
        for lacking, was_drawn in ((absent, False), (empty, True)):
            if lacking:
                how = self._how_to_add(
                    path, asked=len(asked), total=len(records), was_drawn=was_drawn
                )
                named = ", ".join(show(r.question) for r in lacking[:SHOWN_LACKING])
                named += ", …" if len(lacking) > SHOWN_LACKING else ""
                raise UserError(
                    f"{path} {'has no paraphrase left of' if was_drawn else 'lacks'} "
                    f"{len(lacking)} of {len(asked)} questions: {named}; {how}"
                )
        # Those that max_samples leaves out may have none yet.
        return [replace(r, paraphrases=paraphrases.get(r.uuid, ())) for r in records]

    def _command(self, flags: Sequence[str] = ()) -> str:
        """What makes the file of paraphrases."""
        argv = ["--dataset", "webqa", "--model", self.paraphrase_model]
        if self.data_dir is not None:
            argv += ["--data_dir", str(self.data_dir)]
        if self.revision is not None:
            argv += ["--dataset_revision", self.revision]
        return f"python paraphrase.py {shlex.join([*argv, *flags])}"

    def _how_to_add(self, path: Path, *, asked: int, total: int, was_drawn: bool) -> str:
        """What brings the paraphrases that the file has not.

        asked, total: questions of this run, and of the dataset.
        was_drawn: what was drawn for them was dropped; else they were never asked.
        """
        from paraphrase import flags_of

        manifest = read_manifest(path.with_suffix(""))
        identity = manifest["identity"] if manifest else {}
        revision = manifest.get("model", {}).get("revision") if manifest else None
        more = "draw them with" if not was_drawn else "add some to the file, or make it anew with"
        if was_drawn and identity.get("drop"):
            more = "draw more often with"
            identity = identity | {"max_attempts": 2 * identity.get("max_attempts", 1)}
        flags = flags_of(identity, revision)
        if flags is None:
            return f"add them to the file, or make it anew with: {self._command(['--overwrite'])}"
        count = max(manifest["num_questions"], asked)
        if count < total:
            flags += ["--max_samples", str(count)]
        if was_drawn or manifest["num_questions"] >= asked:  # to paraphrase.py it is finished
            flags.append("--overwrite")
        return f"{more}: {self._command(flags)}"


def read_paraphrases(path: Path, records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """The paraphrases of each uuid in a file of paraphrase.py's; none where none was good enough.

    Raises:
        UserError: the file is damaged, or is about other questions than the records'.
    """
    questions = {record.uuid: record.question for record in records}
    columns, rows = read_rows(path)
    for column in ("uuid", "question", "paraphrases"):
        require_columns(path, columns, (column,))
    paraphrases: dict[str, tuple[str, ...]] = {}
    for where, row in rows:
        uuid = checked_label(row.get("uuid"), "uuid", where)
        question = checked_text(row.get("question"), "question", where)
        if questions.get(uuid) != question:
            raise UserError(f"{where}: the dataset does not ask {show(question)}")
        if uuid in paraphrases:
            raise UserError(f"{where} has the uuid {uuid} like a line before it")
        texts = row.get("paraphrases")
        paraphrases[uuid] = () if texts == [] else checked_texts(texts, "paraphrases", where)
    return paraphrases


def _draw_examples(rows: Sequence[Row]) -> tuple[FewShot, ...]:
    return tuple(solved_example(*rows[i]) for i in draw_examples(len(rows)))


def draw_examples(count: int) -> list[int]:
    """Which of `count` training questions are solved examples, in the order they are shown."""
    return random.Random(FEW_SHOT_SEED).sample(range(count), min(count, NUM_FEW_SHOT))


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

    @property
    def question(self) -> str:
        """The wording that stands for the fact: in a solved example, and for the method origin."""
        return (self.manual or self.auto)[0]

    def record(self, draw: Draw | None) -> Record:
        """With the paraphrases of a draw, or with the one wording."""
        paraphrases = (self.question,) if draw is None else self.drawn(draw)
        return Record(self.uuid, paraphrases, self.answers, self.question, self.relation)

    def drawn(self, draw: Draw) -> tuple[str, ...]:
        """Manual and automatic paraphrases, mixed: any first S of them are a draw of S."""
        pool = []
        for kind, texts, count in (
            ("manual", self.manual, draw.num_manual),
            ("auto", self.auto, draw.num_auto),
        ):
            if len(texts) < count:
                raise UserError(
                    f"--num_{kind} {count}: question {self.uuid} has {len(texts)} such paraphrases"
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
        return "myriadlama" + ("" if self.draw is None else self.draw.suffix)

    def load(self, *, max_samples: int | None = None, needs_few_shot: bool = True) -> Dataset:
        """The records, and solved examples where they are needed.

        Raises:
            UserError: a table cannot be had, or a fact has fewer paraphrases than are drawn.
        """
        test, few_shot = self._facts(needs_few_shot)
        records = [fact.record(self.draw) for fact in test]
        return Dataset(
            name=self.name,
            few_shot=few_shot,
            instruction=MYRIADLAMA_INSTRUCTION,
            **fields_of(records) | {"records": records[:max_samples]},
        )

    def _facts(self, needs_few_shot: bool) -> tuple[list[Fact], tuple[FewShot, ...]]:
        if self.data_dir is None:
            splits = fetch(MYRIADLAMA_REPOSITORY, self.revision)
            place, table = hub_table(splits, MYRIADLAMA_REPOSITORY, "train")
            return split_facts(place, typed_facts(place, table))
        folder = checked_folder(self.data_dir)
        sample = find_files(folder, MYRIADLAMA_SAMPLE)
        if not sample:
            files = needed_files(folder, (*MYRIADLAMA_FACTS, *MYRIADLAMA_SAMPLE), "facts")
            with say_if_slow(f"reading {files[0].parent}"):
                return split_facts(*read_fact_table(files))
        return sample_facts(sample), sample_examples(folder) if needs_few_shot else ()


def split_facts(place: str, table: "pyarrow.Table") -> tuple[list[Fact], tuple[FewShot, ...]]:
    """The test questions and the solved examples of the whole table.

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
    examples = tuple(FewShot(facts[u].question, facts[u].answers[0]) for u in shown)
    return [facts[uuid] for uuid in test], examples


def group_facts(place: str, table: "pyarrow.Table") -> dict[str, Fact]:
    """A row a template -> facts by uuid; what belongs to the fact is taken from its first row."""
    groups: dict[str, list[dict]] = {}
    for _, row in rows_of(place, table):
        groups.setdefault(row["uuid"], []).append(row)
    return {uuid: _fact_of_templates(f"fact {uuid} of {place}", g) for uuid, g in groups.items()}


def _fact_of_templates(where: str, rows: list[dict]) -> Fact:
    subject = checked_text(rows[0]["sub_ent"], "sub_ent", where)
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        template = checked_text(row["template"], "template", where)
        if row["is_manual"] is None:
            raise UserError(f"{where}: is_manual is empty")
        kinds[row["is_manual"]].append(fill(template, subject, where))
    return Fact(
        uuid=checked_label(rows[0]["uuid"], "uuid", where),
        relation=checked_label(rows[0]["rel_uri"], "rel_uri", where),
        answers=checked_texts(rows[0]["obj_aliases"], "obj_aliases", where),
        manual=_distinct(kinds[True]),
        auto=_distinct(kinds[False], without=kinds[True]),
    )


def fill(template: str, subject: str, where: str) -> str:
    """`[X] is in [Y].` -> `Lima is in [MASK].`"""
    for slot in ("[X]", "[Y]"):
        if slot not in template:
            raise UserError(f"{where}: the template {show(template)} has no {slot}")
    return template.replace("[Y]", "[MASK]").replace("[X]", subject)


def _distinct(texts: Iterable[str], without: Collection[str] = ()) -> tuple[str, ...]:
    return tuple(text for text in dict.fromkeys(texts) if text not in without)


def read_fact_table(files: Sequence[Path]) -> tuple[str, "pyarrow.Table"]:
    """Files with the hub's columns as one table, with a name for messages."""
    import pyarrow as pa

    tables = []
    for path in files:
        if READERS[path.suffix] is READERS[".parquet"]:
            _, table = read_table(path, is_used=FACT_COLUMNS.__contains__)
        else:
            table = _table_of_rows(path, *read_rows(path))
        tables.append(typed_facts(path, table))
    return str(files[0]), pa.concat_tables(tables)


def _table_of_rows(path: Path, columns: list[str], rows: list[Row]) -> "pyarrow.Table":
    import pyarrow as pa

    cells: dict[str, list] = {name: [row.get(name) for _, row in rows] for name in columns}
    if "obj_aliases" in cells:  # in CSV a list is written as JSON
        pairs = zip(cells["obj_aliases"], rows, strict=True)
        cells["obj_aliases"] = [list(checked_texts(c, "obj_aliases", at)) for c, (at, _) in pairs]
    used = [name for name in FACT_COLUMNS if name in cells]
    try:
        return pa.table({name: cells[name] for name in used})
    except pa.ArrowException as error:
        raise UserError(f"{path}: cells of a column differ in type: {first_line(error)}") from None


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
        raise UserError(f"{place} is not MyriadLAMA's table: {first_line(error)}") from None


def sample_facts(files: Sequence[Path]) -> list[Fact]:
    """The facts of a table with a row a fact."""
    place, columns, rows = read_files(files)
    for column in ("manual_paraphrases", "auto_paraphrases"):
        require_columns(place, columns, (column,))
    facts = []
    for record, (where, row) in zip(records_of(place, columns, rows), rows, strict=True):
        kinds = {}
        for column in ("manual_paraphrases", "auto_paraphrases"):
            is_empty = row.get(column) in (None, "", [], "[]")
            kinds[column] = () if is_empty else checked_texts(row[column], column, where)
        manual, auto = kinds.values()
        if not manual + auto:
            raise UserError(f"{where} has neither manual nor automatic paraphrases")
        facts.append(
            Fact(
                uuid=record.uuid,
                relation=record.relation,
                answers=record.answers,
                manual=_distinct(manual),
                auto=_distinct(auto, without=manual),
            )
        )
    return facts


def sample_examples(folder: Path) -> tuple[FewShot, ...]:
    """Solved examples beside a sample: a file of them, or training facts of the same form."""
    files = find_files(folder, MYRIADLAMA_EXAMPLES)
    if files:
        return tuple(shot for path in files for shot in load_few_shot(path))
    train = sample_facts(needed_files(folder, ("train", *MYRIADLAMA_EXAMPLES), NO_EXAMPLES))
    chosen = [train[i] for i in draw_examples(len(train))]
    return tuple(FewShot(fact.question, fact.answers[0]) for fact in chosen)
