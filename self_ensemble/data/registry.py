"""The datasets that --dataset knows by name, and how one is added.

    @register_dataset("capitals")
    def capitals(options):
        records = [Record("fr", ("Capital of France?", "France's capital?"), ("Paris",)), ...]
        return Dataset("capitals", records, instruction="Answer with a name.")

The modules of data/datasets/ are found by themselves: a file put there is known to all scripts.
Elsewhere, in a notebook or a script, a dataset is known as soon as its function is registered.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self_ensemble.data.cells import show
from self_ensemble.data.hub_tables import is_hub_id, load_hub_dataset
from self_ensemble.data.long_format import Columns
from self_ensemble.data.names import DEFAULT_NUM_PARAPHRASES, FEWER
from self_ensemble.data.question_files import load_question_file
from self_ensemble.data.records import Dataset, check_all_or_none_answered, check_choices
from self_ensemble.data.tables import TABLE_SUFFIXES
from self_ensemble.system.errors import UserError
from self_ensemble.system.registry import Registry


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """What is asked of a dataset. The command line's flags of the same names fill it.

    Args:
        max_samples: how many records are wanted, the first ones. `open_dataset` cuts them off; a
            dataset may use it to check no more than that. None: all.
        original: one wording each is enough, the column `question`.
        needs_few_shot: whether its demonstrations will be shown.
        num_paraphrases, indexs: which paraphrases will be taken of each record.
        fewer: what becomes of a record that has fewer, see `select_paraphrases`. Where it is not
            ``error`` a dataset may give records without paraphrases.
        model: the model that will be asked, as --model has it.

    The rest are options that a dataset says it uses, see `register_dataset`; None: not given.
        data_dir: a folder with the tables as files, instead of the hub.
        dataset_revision: branch, tag or commit of the dataset on the hub.
        split: of any dataset of the hub; None: the only one.
        group_by, paraphrase_column, answer_column, where: of a file, or of any dataset of the hub:
            how its columns are read, see `long_format.Columns`.
        paraphrase_model: the model whose paraphrases are taken.
        num_manual, num_auto, seed: how many paraphrases of each kind are drawn, and from what seed.
    """

    max_samples: int | None = None
    original: bool = False
    needs_few_shot: bool = True
    num_paraphrases: int = DEFAULT_NUM_PARAPHRASES
    indexs: Sequence[int] | None = None
    fewer: str = FEWER[0]
    model: str | None = None
    data_dir: Path | None = None
    dataset_revision: str | None = None
    split: str | None = None
    group_by: str | None = None
    paraphrase_column: str | None = None
    answer_column: str | None = None
    where: Sequence[tuple[str, str]] | None = None
    paraphrase_model: str | None = None
    num_manual: int | None = None
    num_auto: int | None = None
    seed: int | None = None

    @property
    def columns(self) -> Columns:
        return Columns(
            group_by=self.group_by,
            paraphrase_column=self.paraphrase_column,
            answer_column=self.answer_column,
            where=tuple(self.where or ()),
        )


# Options that belong to some datasets only; the first say where a dataset is from, and how it is
# read.
COLUMN_OPTIONS = ("group_by", "paraphrase_column", "answer_column", "where")
HUB_OPTIONS = ("dataset_revision", "split")
SOURCE_OPTIONS = ("data_dir", *HUB_OPTIONS, *COLUMN_OPTIONS)
DATASET_OPTIONS = (*SOURCE_OPTIONS, "paraphrase_model", "num_manual", "num_auto", "seed")

OpenDataset = Callable[[DatasetOptions], Dataset]


@dataclass(frozen=True)
class RegisteredDataset:
    """How a dataset is opened, which of DATASET_OPTIONS it uses, and where it is from.

    repository: on the hub. source: the address of one that users fetch themselves.
    """

    name: str
    open: OpenDataset
    options: tuple[str, ...] = ()
    repository: str | None = None
    source: str | None = None


DATASETS: Registry[RegisteredDataset] = Registry("unknown dataset {name!r}: there is {names}")


def register_dataset(
    name: str,
    *,
    options: Sequence[str] = (),
    repository: str | None = None,
    source: str | None = None,
) -> Callable[[OpenDataset], OpenDataset]:
    """Makes `--dataset name` mean what the decorated function returns.

    Args:
        name: not the name of another dataset.
        options: those of DATASET_OPTIONS that the function uses. Given with a dataset that does
            not use it, an option is an error.
        repository: on the hub, where download_resources.sh fetches it from.
        source: the address of a git repository that the user clones, for --data_dir.

    Returns:
        A decorator of a function that takes `DatasetOptions` and returns a `Dataset` with all
        records. It comes to be called when the dataset is asked for.
    """
    unknown = set(options) - set(DATASET_OPTIONS)
    assert not unknown, f"{name}: {sorted(unknown)} are none of {DATASET_OPTIONS}"

    def register(function: OpenDataset) -> OpenDataset:
        entry = RegisteredDataset(name, function, tuple(options), repository, source)
        DATASETS.add(name, entry)
        return function

    return register


def dataset_names() -> tuple[str, ...]:
    """What --dataset takes besides the path of a file."""
    return DATASETS.names()


def hub_datasets() -> dict[str, str]:
    """The datasets that are fetched from the hub, with their repositories."""
    entries = map(DATASETS.get, DATASETS)
    return {entry.name: entry.repository for entry in entries if entry.repository is not None}


def cloned_datasets() -> dict[str, str]:
    """The datasets that users clone and name with --data_dir, with their addresses."""
    entries = map(DATASETS.get, DATASETS)
    return {entry.name: entry.source for entry in entries if entry.source is not None}


def users_of(option: str) -> tuple[str, ...]:
    """The datasets that use one of DATASET_OPTIONS."""
    assert option in DATASET_OPTIONS, option
    return tuple(name for name in DATASETS if option in DATASETS.get(name).options)


def open_dataset(name_or_path: str, options: DatasetOptions) -> Dataset:
    """A registered dataset, a file, or one of the hub, with its first `max_samples` records.

    name_or_path: a file's path, or a hub id, where it is no registered name.

    Raises:
        UserError: the name is unknown, an option is given that the dataset does not use, or what
            the dataset itself raises.
    """
    check_options(name_or_path, {name: getattr(options, name) for name in DATASET_OPTIONS})
    if name_or_path in DATASETS:
        dataset = DATASETS.get(name_or_path).open(options).first(options.max_samples)
        _check_records(dataset)
        return dataset
    return _open_table(name_or_path, options).first(options.max_samples)


def load_dataset(
    name_or_path: str,
    *,
    max_samples: int | None = None,
    group_by: str | None = None,
    paraphrase_column: str | None = None,
    answer_column: str | None = None,
    where: Mapping[str, str | Sequence[str]] | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """A registered dataset, a file, or one of the hub: its questions in all their wordings.

        load_dataset("variants.csv", group_by="id", answer_column="possible_answers")

    Args:
        name_or_path: a registered name, a file's path, or a hub id.
        max_samples: the first so many questions; None: all.
        group_by: the column whose value all rows of one question share, where a row is a wording.
        paraphrase_column, answer_column: where they have other names, see `long_format.Columns`.
        where: a column → the value, or values, with which rows are taken.
        split, revision: of a dataset of the hub.

    Raises:
        UserError: as `open_dataset`.
    """
    pairs = [
        (column, value)
        for column, values in (where or {}).items()
        for value in _wanted(column, values)
    ]
    options = DatasetOptions(
        max_samples=max_samples,
        group_by=group_by,
        paraphrase_column=paraphrase_column,
        answer_column=answer_column,
        where=pairs or None,
        split=split,
        dataset_revision=revision,
    )
    return open_dataset(name_or_path, options)


def _wanted(column: str, given: Any) -> Sequence[str]:
    """The values that are given for a column."""
    values = [given] if isinstance(given, str) else given
    if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
        raise UserError(
            f"where: {show(column)} takes a text or a list of texts, found {show(given)}; write "
            "numbers and truth values as '2' and 'true'"
        )
    return values


def check_options(name_or_path: str, given: dict[str, Any]) -> None:
    """Raises UserError where one of these options is given with a dataset that does not use it.

    Args:
        given: some of DATASET_OPTIONS; None is not given.
    """
    for option, value in given.items():
        if value is None or value == () or name_or_path in users_of(option):
            continue
        is_table = name_or_path not in DATASETS
        is_from_hub = is_table and not os.path.exists(name_or_path) and is_hub_id(name_or_path)
        if (is_table and option in COLUMN_OPTIONS) or (is_from_hub and option in HUB_OPTIONS):
            continue
        users = [*users_of(option)]
        users += ["FILE"] if option in COLUMN_OPTIONS else []
        users += ["ORGANISATION/NAME"] if option in (*COLUMN_OPTIONS, *HUB_OPTIONS) else []
        raise UserError(
            f"--{option} belongs to --dataset {_listed(users)}; {name_or_path} does not use it"
        )
    if given.get("data_dir") is not None and given.get("dataset_revision") is not None:
        raise UserError("--dataset_revision: a folder (--data_dir) has one state only")


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`"""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _open_table(name_or_path: str, options: DatasetOptions) -> Dataset:
    """A file, or a dataset of the hub."""
    path = Path(name_or_path)
    # os.path, since exists() of Path raises on too long a name.
    if not os.path.exists(path):
        if is_hub_id(name_or_path):
            return load_hub_dataset(
                name_or_path,
                revision=options.dataset_revision,
                split=options.split,
                how=options.columns,
            )
        if not path.suffix:
            raise UserError(
                f"unknown dataset {show(name_or_path)}: there is {', '.join(dataset_names())}, "
                f"or give the path of a file ({', '.join(TABLE_SUFFIXES)}) or a hub id "
                "(organisation/name)"
            )
    return load_question_file(path, options.columns)


def _check_records(dataset: Dataset) -> None:
    """What files are checked for row by row must hold for records that a function made, too."""
    if not dataset.records:
        raise UserError(f"the dataset {dataset.name} has no records")
    seen: set[str] = set()
    for record in dataset.records:
        where = f"the dataset {dataset.name}, question {show(record.uuid)}"
        for what in ("paraphrases", "answers", "choices"):
            texts = getattr(record, what)
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise UserError(f"{where}: {what} must be texts, none of them empty: {show(texts)}")
        if record.uuid in seen:
            raise UserError(f"{where}: another question has the same uuid")
        seen.add(record.uuid)
    check_all_or_none_answered(dataset.records)
    check_choices(dataset.records)
