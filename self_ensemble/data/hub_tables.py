"""Where the tables of a dataset of the hub come from: the hub, or a folder with the same as files.

    load_hub_dataset("qintongli/GSM-Plus", split="test")    # a table of questions, as a file's
    place, table = hub_table(fetch("stanfordnlp/web_questions", None), "…", "test")
    place, columns, rows = read_files(find_files(Path("folder"), ("web_questions_test", "test")))

A `place` is a name for messages.
"""

import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from self_ensemble.data.cells import show_name
from self_ensemble.data.long_format import PLAIN, Columns
from self_ensemble.data.names import DEFAULT_INSTRUCTION
from self_ensemble.data.question_files import is_question_column, read_question_rows, records_of
from self_ensemble.data.records import Dataset
from self_ensemble.data.tables import TABLE_SUFFIXES, Row, error_line, rows_of
from self_ensemble.system.console import say_if_slow
from self_ensemble.system.errors import UserError
from self_ensemble.system.hub_errors import explain

if TYPE_CHECKING:
    import datasets
    import pyarrow

# `train-00001-of-00003.parquet`, as the hub's own files are named.
SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
OR_FILES = "or give the tables as files with --data_dir"
OR_A_FILE = f"or give --dataset the path of a file ({', '.join(TABLE_SUFFIXES)})"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Of files that users give, those that cannot be read included.
FILE_SUFFIXES = (*TABLE_SUFFIXES, *(".json", ".txt", ".tsv", ".xlsx", ".arrow", ".gz", ".zip"))
# Files by which a repository's commit is told; the hub puts the second into each.
COMMIT_FILES = ("README.md", ".gitattributes")
NO_EXAMPLES = "few-shot demonstrations (give --few_shot FILE, or --num_few_shot 0)"

# More demonstrations than anyone shows. The first five are the same as if five were drawn, with the
# seed that the authors of the published predictions drew theirs with.
NUM_FEW_SHOT, FEW_SHOT_SEED = 64, 42


def is_hub_id(name: str) -> bool:
    """Whether it is an organisation and a name. With the suffix of a table it is a file's path."""
    return HUB_ID.fullmatch(name) is not None and Path(name).suffix.lower() not in FILE_SUFFIXES


def load_hub_dataset(
    repository: str,
    *,
    revision: str | None = None,
    split: str | None = None,
    how: Columns = PLAIN,
) -> Dataset:
    """A split of any dataset of the hub, read as a user's own file is, and named by both.

    Args:
        repository: hub id.
        revision: branch, tag or commit.
        split: None: the only one.
        how: what its columns are called, and whether a row is a wording.

    Raises:
        UserError: it cannot be had, there are several splits to choose from, or its table is not
            one of questions.
    """
    splits = fetch(repository, revision, otherwise=OR_A_FILE)
    if split is None:
        if len(splits) > 1:
            raise UserError(f"--split: {repository} has the splits {', '.join(splits)}; give one")
        split = next(iter(splits))
    place, table = hub_table(splits, repository, split)
    columns = table.column_names
    used = [column for column in columns if is_question_column(column, how)]
    records = records_of(place, *how.read(place, columns, rows_of(place, table.select(used))))
    return Dataset(f"{repository}-{split}{how.suffix}", records, instruction=DEFAULT_INSTRUCTION)


def draw_examples(count: int) -> list[int]:
    """Which of `count` training questions are demonstrations, in the order they are shown."""
    return random.Random(FEW_SHOT_SEED).sample(range(count), min(count, NUM_FEW_SHOT))


def checked_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"--data_dir: there is no folder {folder}")
    return folder


def needed_files(folder: Path, names: Sequence[str], what: str) -> list[Path]:
    files = find_files(folder, names)
    if not files:
        raise UserError(
            f"--data_dir: {folder} holds no {what}: no file is named {' or '.join(names)} "
            f"({', '.join(TABLE_SUFFIXES)})"
        )
    return files


def find_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The file of one of the names, or the parts of it; empty where there is none.

    Raises:
        UserError: there are several to choose from, or a part is missing.
    """
    found = []
    for name in names:
        whole = (folder / f"{name}{suffix}" for suffix in TABLE_SUFFIXES)
        found += [[path] for path in whole if path.is_file()]
        for place in (folder, folder / "data"):
            parts = sorted(p for p in place.glob(f"{name}-*-of-*") if p.suffix in TABLE_SUFFIXES)
            if parts:
                found.append(parts)
    if len(found) > 1:
        raise UserError(
            f"--data_dir: {folder} holds both {found[0][0].name} and {found[1][0].name}; which of "
            "them is meant cannot be told"
        )
    for path in found[0] if found else ():
        part = SHARD.search(path.name)
        if part and int(part[2]) != len(found[0]):
            raise UserError(
                f"--data_dir: {path.parent} holds {len(found[0])} of the {int(part[2])} parts of "
                f"{path.name.replace(part[0], '')}"
            )
    return found[0] if found else []


def read_files(files: Sequence[Path]) -> tuple[str, list[str], list[Row]]:
    """The parts of a table of questions: a name for messages, all columns, all rows."""
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for path in files:
        of_part, more = read_question_rows(path)
        columns.update(dict.fromkeys(of_part))
        rows += more
    return str(files[0]), list(columns), rows


def fetch(
    repository: str,
    revision: str | None,
    *,
    asked_as: str | None = None,
    otherwise: str = OR_FILES,
) -> "datasets.DatasetDict":
    """A dataset of the hub with all its splits, from the cache where it is there already.

    Args:
        asked_as: its name for --dataset, where errors say what to do.
        otherwise: what else can be done, at the end of errors.

    Raises:
        UserError: it cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{repository} is read through the package datasets, which cannot be imported "
            f"({error}): pip install datasets, {otherwise}"
        ) from None
    # A proxy, a cache, a file of the repository's, the hub itself: anything may raise anything.
    try:
        with say_if_slow(f"loading {repository}"), bars_on_a_terminal_only():
            splits = datasets.load_dataset(repository, revision=revision)
            wanted = commit_of(repository, revision)
    except Exception as error:
        raise UserError(hub_problem(error, repository, revision, asked_as, otherwise)) from error
    # Where the hub cannot be reached the library takes what it fetched last, of any revision.
    files = [file["filename"] for split in splits.values() for file in split.cache_files]
    loaded = {Path(file).parent.name for file in files}
    if loaded != {wanted}:
        raise UserError(
            f"of {repository} the cache holds {', '.join(sorted(loaded))} as the latest, but "
            f"{revision or 'main'} is {wanted}; reach the hub once, {otherwise}"
        )
    return splits


@contextmanager
def bars_on_a_terminal_only() -> Iterator[None]:
    """Within, `datasets` draws no progress bars into a log; then it is as it was."""
    import datasets

    silenced = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if silenced:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if silenced:
            datasets.enable_progress_bars()


def commit_of(repository: str, revision: str | None) -> str:
    """The commit that a revision is, or was when the hub was last reached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in COMMIT_FILES:
        try:
            file = hf_hub_download(repository, name, repo_type="dataset", revision=revision)
        except EntryNotFoundError:  # also where the hub is not reached, and the cache lacks it
            if name == COMMIT_FILES[-1]:
                raise
        else:
            return Path(file).parent.name
    raise AssertionError(COMMIT_FILES)


def hub_table(
    splits: "datasets.DatasetDict", repository: str, split: str
) -> tuple[str, "pyarrow.Table"]:
    """A split as a table, with a name for messages."""
    if split not in splits:
        raise UserError(f"{repository} has no split {show_name(split)}; it has {', '.join(splits)}")
    return f"{repository} ({split})", splits[split].with_format("arrow")[:]


def hub_problem(
    error: Exception,
    repository: str,
    revision: str | None,
    asked_as: str | None,
    otherwise: str = OR_FILES,
) -> str:
    """What went wrong with a dataset of the hub, and what to do, as one sentence."""
    problem = explain(error, repository, revision=revision, dataset=asked_as or repository)
    configurations = re.match(r"Config name is missing.*?\[(.*?)\]", str(error), re.S)
    if configurations:
        return (
            f"{repository} has several configurations ({configurations[1]}), of which --dataset "
            f"cannot choose one; {otherwise}"
        )
    if problem is None:
        return f"cannot read {repository} from the hub: {error_line(error)}"
    if problem.kind == "revision":  # --revision is the model's
        return f"{repository} has no revision {revision!r} (--dataset_revision)"
    return f"{problem.text}; {otherwise}"
