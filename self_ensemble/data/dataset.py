"""Questions in several wordings, and the prompts made of them.

`load_dataset` gives the same records for every source: the bundled demo, or a user's own file.
(WebQuestions and MyriadLAMA: hub_datasets.py.)

A file is .parquet, .feather, .jsonl or .csv (UTF-8, commas, a header; a list is written as JSON).
Its columns:

* `answers` (a list, or one text) or `answer`;
* the paraphrases, from the first of these that a row has: `paraphrases` (a list);
  `manual_paraphrases` followed by `auto_paraphrases` (lists); `paraphrase0`, `paraphrase1`, …;
  `question`, which then is the only wording;
* if there: `question` (what the method `origin` asks), `uuid`, `relation` or `rel`. Without `uuid`
  it is the first 32 hex digits of the question's sha256 (where there is no question, of the first
  paraphrase with the answers).

Rows are counted from 1. In .jsonl and .csv a place is a line of the file.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from self_ensemble.data.names import (
    DATASET_NAMES,
    DEFAULT_INSTRUCTION,
    DEFAULT_NUM_FEW_SHOT,
    DEMO_FEW_SHOT,
    DEMO_INSTRUCTION,
    DEMO_QUESTIONS,
    HUB_DATASETS,
)
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow

ANSWER_COLUMNS = ("answers", "answer")
LIST_COLUMNS = ("paraphrases", "manual_paraphrases", "auto_paraphrases")
OTHER_COLUMNS = ("question", "uuid", "relation", "rel")
NUMBERED_COLUMN = re.compile(r"paraphrase(0|[1-9][0-9]*)")

# Stands for the paraphrase while a chat template is rendered. Private-use characters: a template
# neither trims nor escapes them, and no text holds them.
SENTINEL = "\ue000\uf0f0\uf8ff"
# What a template that escapes its input would change. Rendered to see that it does not.
ESCAPE_PROBE = "“Who” said \"no\" & 'yes' to <b> \\ {{x}}?"


@dataclass(frozen=True)
class Record:
    """A question: its wordings and what counts as right.

    `question` is the original wording where the source has one, `relation` the kind of fact.
    """

    uuid: str
    paraphrases: tuple[str, ...]
    answers: tuple[str, ...]
    question: str | None = None
    relation: str | None = None


@dataclass(frozen=True)
class FewShot:
    """A solved example."""

    question: str
    answer: str


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with a gap for the paraphrase.

    `add_special_tokens` is what the tokenizer is to be called with: a chat template's rendering
    carries its own BOS.
    """

    head: str
    tail: str
    add_special_tokens: bool = True

    def render(self, paraphrase: str) -> str:
        return self.head + paraphrase + self.tail


@dataclass(frozen=True)
class Dataset:
    """What a source gives.

    `name` goes into the path of the results. `fingerprint` is the sha256 of the content of all
    the source's records, also of those that `max_samples` left out, so that a run can be extended.
    """

    name: str
    records: list[Record]
    few_shot: tuple[FewShot, ...]
    instruction: str
    fingerprint: str


def construct_prompts(paraphrases: Iterable[str], template: PromptTemplate) -> list[str]:
    """One prompt a paraphrase, in the order given."""
    return [template.render(paraphrase) for paraphrase in paraphrases]


def prompt_template(instruction: str, few_shot: Sequence[FewShot]) -> PromptTemplate:
    """The plain few-shot prompt.

    `prompt_template("Name it.", [FewShot("Capital of Peru?", "Lima")])` renders "Capital of Mali?"
    as `Name it.\\n\\nQ: Capital of Peru?\\nA: Lima\\n\\nQ: Capital of Mali?\\nA:`. An empty
    instruction leaves no blank line behind.
    """
    opening = f"{instruction}\n\n" if instruction else ""
    examples = "".join(f"Q: {shot.question}\nA: {shot.answer}\n\n" for shot in few_shot)
    return PromptTemplate(head=f"{opening}{examples}Q: ", tail="\nA:")


def chat_prompt_template(tokenizer, template: PromptTemplate) -> PromptTemplate:
    """`template` as one user message in the chat format of `tokenizer`'s model.

    A reasoning mode is switched off and the date that some templates print is fixed (Llama 3's own
    default), where the template has such switches: answers are a few tokens long, and a prompt must
    be the same tomorrow. Templates without them ignore both.

    Raises UserError where there is no chat template, where it does not put a message's text through
    unchanged and exactly once, or where it leaves a thought open, of which an answer of a few
    tokens would be the beginning.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("--chat_template: the tokenizer of this model has no chat template")

    def render(paraphrase: str) -> str:
        try:
            return tokenizer.apply_chat_template(
                [{"role": "user", "content": template.render(paraphrase)}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
                date_string="26 Jul 2024",
            )
        except Exception as error:  # a template is a program of the model's authors
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                "--chat_template: the model's chat template refuses a single user message: "
                f"{reason}"
            ) from error

    pieces = render(SENTINEL).split(SENTINEL)
    if len(pieces) != 2:
        raise UserError(
            "--chat_template: the model's chat template shows the text of a message "
            f"{len(pieces) - 1} times where it must show it once"
        )
    rendered = PromptTemplate(head=pieces[0], tail=pieces[1], add_special_tokens=False)
    if rendered.render(ESCAPE_PROBE) != render(ESCAPE_PROBE):
        raise UserError("--chat_template: the model's chat template alters the text of a message")
    if "</think>" not in rendered.tail.rpartition("<think>")[2] and "<think>" in rendered.tail:
        raise UserError(
            "--chat_template: the model's chat template begins the answer with a thought (<think>) "
            "that nothing closes; leave --chat_template out"
        )
    return rendered


def choose_template(
    dataset: Dataset,
    *,
    instruction: str | None,
    few_shot_file: Path | None,
    num_few_shot: int | None,
) -> PromptTemplate:
    """The plain prompt of a run: what the command line gives, else what the dataset brings.

    The first `num_few_shot` solved examples are shown (None: some), or as many as there are.

    Raises:
        UserError: some were asked for, and there are none.
    """
    if instruction is None:
        instruction = dataset.instruction
    few_shot = dataset.few_shot if few_shot_file is None else load_few_shot(few_shot_file)
    if num_few_shot and not few_shot:
        raise UserError(
            f"--num_few_shot {num_few_shot}: the dataset {dataset.name} brings no solved examples; "
            "give --few_shot FILE"
        )
    shown = DEFAULT_NUM_FEW_SHOT if num_few_shot is None else num_few_shot
    return prompt_template(instruction, few_shot[:shown])


def select_paraphrases(
    records: Iterable[Record], *, num_paraphrases: int, indexs: Sequence[int] | None
) -> list[Record]:
    """The records with the first `num_paraphrases` paraphrases, or with those at `indexs`.

    Raises UserError where a record has too few, and for an index that is negative or doubled.
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
            first = _name(record.paraphrases[0])
            raise UserError(
                f"{asked}, but question {_name(record.uuid)} has {found} ({first}){remedy}"
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


def load_dataset(name_or_path: str, *, max_samples: int | None) -> Dataset:
    """The demo, or a user's own file (its columns: top of this module).

    WebQuestions and MyriadLAMA have settings of their own: `hub_datasets.open_dataset`.

    `max_samples` keeps the first so many records; the whole file is read and checked all the same.
    Raises UserError, one sentence that names file, row and uuid, for anything that is not as it
    should be.
    """
    assert name_or_path not in HUB_DATASETS, "see hub_datasets.open_dataset"
    if name_or_path == "demo":
        dataset = Dataset(
            name="demo",
            few_shot=load_few_shot(DEMO_FEW_SHOT),
            instruction=DEMO_INSTRUCTION,
            **fields_of(records_of(DEMO_QUESTIONS, *read_rows(DEMO_QUESTIONS))),
        )
    else:
        path = Path(name_or_path)
        if not path.suffix and not os.path.exists(path):
            raise UserError(
                f"unknown dataset {show(name_or_path)}: there is {', '.join(DATASET_NAMES)}, "
                f"or give the path of a file ({', '.join(READERS)})"
            )
        dataset = Dataset(
            name=path.stem,
            few_shot=(),
            instruction=DEFAULT_INSTRUCTION,
            **fields_of(records_of(path, *read_rows(path))),
        )
    return replace(dataset, records=dataset.records[:max_samples])


def load_few_shot(path: Path) -> tuple[FewShot, ...]:
    """Solved examples from a jsonl file (any file that `load_dataset` reads will do).

    `question`, or the first of `paraphrases`; `answer`, or the first of `answers`.
    """
    path = Path(path)
    columns, rows = read_rows(path)
    require_columns(path, columns, ("question", "paraphrases"))
    require_columns(path, columns, ANSWER_COLUMNS)
    return tuple(solved_example(where, row) for where, row in rows)


def solved_example(where: str, row: dict) -> FewShot:
    """A row as `load_few_shot` takes it."""
    if is_missing(row.get("question")):
        question = checked_texts(row.get("paraphrases"), "paraphrases", where)[0]
    else:
        question = checked_text(row["question"], "question", where)
    if is_missing(row.get("answer")):
        answer = _answers(row, where)[0]
    else:
        answer = checked_text(row["answer"], "answer", where)
    return FewShot(question=question, answer=answer)


# Rows to records


# A row with its place in words, such as `line 3 of questions.jsonl`, which errors begin with.
Row = tuple[str, dict]


def records_of(source: Path | str, columns: list[str], rows: list[Row]) -> list[Record]:
    """The rows as records, each checked, no uuid twice.

    Raises UserError, one sentence that names row and uuid, or `source` where a column lacks.
    """
    numbered = _numbered_columns(source, columns)
    require_columns(source, columns, ANSWER_COLUMNS)
    if not numbered:
        require_columns(source, columns, (*LIST_COLUMNS, "paraphrase0", "question"))
    records = []
    places: dict[str, str] = {}
    for where, row in rows:
        record = _record(row, numbered, where)
        if record.uuid in places:
            if is_missing(row.get("uuid")):
                asked = record.question or record.paraphrases[0]
                problem = f"asks {show(asked)}, without a uuid of its own,"
            else:
                problem = f"has the uuid {_name(record.uuid)}"
            raise UserError(f"{where} {problem} like {places[record.uuid]}")
        places[record.uuid] = where
        records.append(record)
    return records


def fields_of(records: list[Record]) -> dict:
    """The records and their fingerprint, as the fields of a Dataset."""
    content = [[r.uuid, r.paraphrases, r.answers, r.question, r.relation] for r in records]
    return {"records": records, "fingerprint": sha256(_json(content))}


def _record(row: dict, numbered: list[str], where: str) -> Record:
    uuid = checked_label(row.get("uuid"), "uuid", where)
    if uuid is not None:
        where = f"{where} (uuid {_name(uuid)})"
    relation_column = "rel" if is_missing(row.get("relation")) else "relation"
    relation = checked_label(row.get(relation_column), relation_column, where)
    question = row.get("question")
    question = None if is_missing(question) else checked_text(question, "question", where)
    answers = _answers(row, where)
    paraphrases = _paraphrases(row, numbered, question, where)
    if uuid is None:
        # Two rows may share their first wording and differ in what is right.
        content = _json([paraphrases[0], *answers]) if question is None else question
        uuid = uuid_of(content)
    return Record(uuid, paraphrases, answers, question, relation)


def uuid_of(question: str) -> str:
    return sha256(question)[:32]


def _answers(row: dict, where: str) -> tuple[str, ...]:
    column = "answer" if is_missing(row.get("answers")) else "answers"
    value = row.get(column)
    if is_missing(value):
        raise UserError(f"{where} has no answers")
    if isinstance(value, str) and not _looks_like_list(value):
        return (checked_text(value, column, where),)
    if not isinstance(value, (str, list)):
        raise UserError(f"{where}: {column} must be a text or a list of texts, found {show(value)}")
    return checked_texts(value, column, where)


def _paraphrases(
    row: dict, numbered: list[str], question: str | None, where: str
) -> tuple[str, ...]:
    if not is_missing(row.get("paraphrases")):
        return checked_texts(row["paraphrases"], "paraphrases", where)
    pooled: tuple[str, ...] = ()
    for column in ("manual_paraphrases", "auto_paraphrases"):
        value = row.get(column)
        if not is_missing(value) and value not in ([], "[]"):
            pooled += checked_texts(value, column, where)
    if pooled:
        return pooled
    # A row of a wide table has fewer wordings than the widest where its last cells are empty.
    cells = [row.get(column) for column in numbered]
    while cells and is_missing(cells[-1]):
        cells.pop()
    if cells:
        return tuple(checked_text(cell, f"paraphrase{i}", where) for i, cell in enumerate(cells))
    if question is not None:
        return (question,)
    raise UserError(f"{where} has no paraphrases and no question")


def checked_texts(value, column: str, where: str) -> tuple[str, ...]:
    """A list of texts, as it is or written as JSON."""
    if isinstance(value, str) and _looks_like_list(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(
                f"{where}: {column} looks like a list but is not JSON: {show(value)}"
            ) from None
    if not isinstance(value, list):
        raise UserError(f"{where}: {column} must be a list of texts, found {show(value)}")
    if not value:
        raise UserError(f"{where}: {column} is an empty list")
    return tuple(checked_text(text, f"{column}[{i}]", where) for i, text in enumerate(value))


def checked_text(value, what: str, where: str) -> str:
    if is_missing(value):
        raise UserError(f"{where}: {what} is empty")
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} must be a text, found {show(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {what} holds half a character: {show(value)}") from None
    return value


def checked_label(value, what: str, where: str) -> str | None:
    """A name: a text, or a whole number, which is as good a name."""
    if is_missing(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked_text(value, what, where)


def is_missing(value) -> bool:
    """Null, NaN, or nothing but white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _looks_like_list(text: str) -> bool:
    text = text.strip()
    return text.startswith("[") and text.endswith("]")


def show(value) -> str:
    """A value from a file as it can stand in a sentence."""
    try:
        shown = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} in which many others are nested"
    return _cut(shown if shown.isprintable() else ascii(value), 60)


def _name(text: str) -> str:
    """A text that names something, without quotes where it can be read without."""
    return text if text.isprintable() and len(text) <= 60 else show(text)


def _names(texts: Sequence[str]) -> str:
    return _cut(", ".join(_name(text) for text in texts), 150) or "none"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _numbered_columns(source: Path | str, columns: list[str]) -> list[str]:
    """paraphrase0, paraphrase1, … in order of their numbers."""
    numbers = sorted(int(m[1]) for c in columns if (m := NUMBERED_COLUMN.fullmatch(c)))
    for expected, number in enumerate(numbers):
        if number != expected:
            raise UserError(f"{source} has a column paraphrase{number} but no paraphrase{expected}")
    return [f"paraphrase{number}" for number in numbers]


def require_columns(source: Path | str, columns: list[str], any_of: Sequence[str]) -> None:
    if not set(columns) & set(any_of):
        raise UserError(
            f"{source} has none of the columns {', '.join(any_of)}; "
            f"its columns are {_names(columns)}"
        )


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# Files to rows: columns, and for each row its place in words and its values


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    reader = READERS.get(path.suffix.lower())
    try:
        # os.path, since those of Path raise on too long a name.
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder; give a file ({', '.join(READERS)})")
        if not os.path.exists(path):
            raise UserError(f"there is no file {path}")
        if reader is None:
            raise UserError(
                f"{path} ends in {path.suffix or 'nothing'!r}; "
                f"files that can be read end in {', '.join(READERS)}"
            )
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty")
        columns, rows = reader(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
    doubled = sorted({column for column in columns if columns.count(column) > 1})
    if doubled:
        raise UserError(f"{path} has two columns named {show(doubled[0])}")
    if not rows:
        raise UserError(f"{path} has no rows")
    return columns, rows


def _read_jsonl(path: Path) -> tuple[list[str], list[Row]]:
    columns: dict[str, None] = {}
    rows = []
    # Not splitlines: texts may hold other line separators of Unicode.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        where = f"line {number} of {path}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise UserError(f"{where} is not valid UTF-8") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON: {error.msg}, column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON that can be read: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object with named values, found {show(row)}")
        columns.update(dict.fromkeys(row))
        rows.append((where, row))
    return list(columns), rows


def _read_csv(path: Path) -> tuple[list[str], list[Row]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"line {line} of {path} is not valid UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    rows = []
    line = 1  # where the row starts: a quoted cell may hold line breaks
    try:
        for cells in reader:
            where = f"line {line} of {path}"
            line = reader.line_num + 1
            if not cells:
                continue
            if not columns:
                columns = cells
                continue
            if len(cells) != len(columns):
                raise UserError(f"{where} has {len(cells)} cells, the header has {len(columns)}")
            rows.append((where, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"line {line} of {path} is not CSV: {error}") from None
    return columns, rows


def _read_arrow(path: Path) -> tuple[list[str], list[Row]]:
    columns, table = read_table(path, is_used=_is_used)
    return columns, rows_of(path, table)


def read_table(path: Path, *, is_used: Callable[[str], bool]) -> "tuple[list[str], pyarrow.Table]":
    """The names of a .parquet or .feather file's columns, and those of them that `is_used`."""
    # pyarrow only here, and no pandas: --help stays quick, and rows hold plain Python values.
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    is_parquet = path.suffix.lower() == ".parquet"
    try:
        if is_parquet:
            with pa.parquet.ParquetFile(path) as file:
                columns = file.schema_arrow.names
                table = file.read(columns=[column for column in columns if is_used(column)])
        else:
            table = pa.feather.read_table(path, memory_map=False)
            columns = table.column_names
            table = table.select([i for i, column in enumerate(columns) if is_used(column)])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = "parquet" if is_parquet else "feather"
        raise UserError(f"{path} is not a whole {kind} file: {first_line(error)}") from error
    for name, column in zip(table.column_names, table.columns, strict=True):
        # Reading a damaged column without this could end the interpreter instead of raising.
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            row = _undecodable_row(column) if "UTF8" in str(error) else None
            if row is None:
                raise UserError(f"{path}: {name} is damaged: {first_line(error)}") from error
            raise UserError(f"row {row} of {path}: {name} is not valid UTF-8") from error
    return columns, table


def rows_of(source: Path | str, table: "pyarrow.Table") -> list[Row]:
    try:
        rows = table.to_pylist()
    except (OverflowError, ValueError) as error:  # times beyond the year 9999, and the like
        raise UserError(
            f"{source} holds a value that cannot be read: {first_line(error)}"
        ) from error
    return [(f"row {i} of {source}", row) for i, row in enumerate(rows, 1)]


def _undecodable_row(column) -> int | None:
    for start in range(len(column)):
        try:
            column.slice(start, 1).to_pylist()
        except UnicodeDecodeError:
            return start + 1
    return None


def _is_used(column: str) -> bool:
    return (
        column in (*ANSWER_COLUMNS, *LIST_COLUMNS, *OTHER_COLUMNS)
        or NUMBERED_COLUMN.fullmatch(column) is not None
    )


def first_line(error: Exception) -> str:
    """What a library says, of which a damaged file's bytes may be a part."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return _cut(line if line.isprintable() else ascii(line)[1:-1], 120)


READERS: dict[str, Callable[[Path], tuple[list[str], list[Row]]]] = {
    ".parquet": _read_arrow,
    ".feather": _read_arrow,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}
