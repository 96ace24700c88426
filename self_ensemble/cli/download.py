"""Fetch models, datasets and spaCy's English model, so that later runs find them on this machine.

    ./download_resources.sh --dataset webqa --model llama3.2_3b_it

Only what is missing is fetched, into the caches where transformers and datasets look; a file is
there whole or not at all, so that a command that was interrupted is simply given again. HF_HOME
says where the caches are, HF_ENDPOINT which hub or mirror to ask, HF_TOKEN as whom.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from self_ensemble.cli.parser import Parser, run
from self_ensemble.data.hub_tables import commit_of, is_hub_id
from self_ensemble.data.registry import cloned_datasets, dataset_names, hub_datasets
from self_ensemble.evaluation.lemmatizer import PREFERRED_MODEL
from self_ensemble.models.aliases import MODEL_PATHs, resolve_model
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import nearest_existing
from self_ensemble.system.hub_errors import (
    SECONDS_TO_ANSWER,
    WEIGHTS,
    Problem,
    cache_folder,
    explain,
)
from self_ensemble.system.hub_errors import is_here as model_is_here
from self_ensemble.system.interrupts import advise

# Tokenizer, configuration, weights; not pickles, not the same weights again in other formats.
MODEL_FILE = re.compile(r"[\w.-]+\.json|[\w.-]+\.jinja|tokenizer\.model|(merges|vocab)\.txt")
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")

# A dataset's rows are unpacked from its compressed files, and both are kept.
UNPACKED = 4

# Problems that leave usable what is here already.
UNTIED = {
    "network": "it cannot be reached",
    "busy": "it is busy or down",
    "offline": "HF_HUB_OFFLINE=1 forbids it",
}


@dataclass(frozen=True)
class Resource:
    """A repository of the hub, under the name by which it was asked for."""

    flag: str  # --model or --dataset
    name: str
    repository: str
    revision: str | None = None

    @property
    def is_dataset(self) -> bool:
        return self.flag == "--dataset"

    @property
    def kind(self) -> str:
        return "dataset" if self.is_dataset else "model"

    @property
    def folder(self) -> Path:
        """In the hub's cache."""
        return Path(cache_folder()) / f"{self.kind}s--{self.repository.replace('/', '--')}"

    def __str__(self) -> str:
        return self.name if self.name == self.repository else f"{self.name} ({self.repository})"


@dataclass(frozen=True)
class Plan:
    """files: what belongs to the resource. missing: bytes of them that are not here yet."""

    resource: Resource
    files: tuple[str, ...]
    missing: int


def main(args: argparse.Namespace) -> None:
    if args.list:
        check_packages(())
        show_list()
        return
    resources = asked_for(args)
    if resources:
        advise(lambda: "given again, the command goes on with what is not whole yet")
        check_packages(resources)
        for resource in resources:
            remove_leftovers(resource)
        plans = [plan for plan in map(plan_fetch, resources) if plan is not None]
        check_space(plans)
        for plan in plans:
            fetch(plan)
    if args.spacy:
        fetch_spacy()


def asked_for(args: argparse.Namespace) -> list[Resource]:
    """What is to be looked for on the hub; what needs no hub is told of and left out."""
    names = args.dataset or (dataset_names() if args.dataset_only else ())
    resources = []
    for name in dict.fromkeys(names):
        if name in hub_datasets():
            repository = hub_datasets()[name]
            resources.append(Resource("--dataset", name, repository, args.dataset_revision))
        elif name in cloned_datasets():
            how_to = f"git clone {cloned_datasets()[name]}, and name the folder with --data_dir"
            if args.dataset:
                raise UserError(f"--dataset {name}: it is not on the hub: {how_to}")
            print(f"{name}: not on the hub: {how_to}")
        elif name in dataset_names():
            print(f"{name}: its questions come with the project, nothing to fetch")
        elif is_hub_id(name):
            resources.append(Resource("--dataset", name, name, args.dataset_revision))
        else:
            known = ", ".join(dataset_names())
            raise UserError(
                f"--dataset: {name!r} is none that is fetched; there are {known}, and hub ids "
                "(organisation/name)"
            )
    for name in dict.fromkeys(args.model):
        path = resolve_model(name)
        kind = "file" if os.path.isfile(path) else "folder"
        if os.path.exists(path) and args.revision is not None:
            raise UserError(f"--revision {args.revision}: {path} is a {kind}, with one state only")
        if not os.path.exists(path):
            resources.append(Resource("--model", name, path, args.revision))
        elif name in MODEL_PATHs:
            print(f"{name}: the model comes with the project, nothing to fetch")
        else:
            print(f"{name}: a {kind} of this machine, nothing to fetch")
    return resources


def check_packages(resources: Iterable[Resource]) -> None:
    needed = ["huggingface_hub"]
    if any(resource.is_dataset for resource in resources):
        needed.append("datasets")
    for package in needed:
        if find_spec(package) is None:
            raise UserError(
                f"the package {package} is not installed: {sys.executable} -m pip install -r "
                "requirements.txt"
            )
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def problems_told(resource: Resource) -> Iterator[None]:
    """Whatever the clients raise becomes one sentence: they promise no kinds of errors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise refusal(resource, error, problem_with(resource, error)) from error


def refusal(resource: Resource, error: BaseException, problem: Problem | None) -> UserError:
    """The problem if one was found, else what the client said."""
    said = f"{resource.repository}: {type(error).__name__}: {' '.join(str(error).split())}"
    text = said if problem is None else problem.text
    return UserError(f"{resource.flag} {resource.name}: {text[:600]}")


def problem_with(resource: Resource, error: BaseException) -> Problem | None:
    dataset = resource.name if resource.is_dataset else None
    return explain(error, resource.repository, revision=resource.revision, dataset=dataset)


def plan_fetch(resource: Resource) -> Plan | None:
    """Asks the hub what there is, without fetching any of it.

    None if the hub cannot be asked, and everything is here from before.
    """
    from huggingface_hub import HfApi

    with problems_told(resource):
        try:
            about: Any = HfApi().repo_info(
                resource.repository,
                repo_type=resource.kind,
                revision=resource.revision,
                timeout=SECONDS_TO_ANSWER,
            )
        except Exception as error:
            problem = problem_with(resource, error)
            if problem is None or problem.kind not in UNTIED or not is_here(resource):
                raise refusal(resource, error, problem) from error
            print(f"{resource}: here; not compared with the hub: {UNTIED[problem.kind]}")
            return None
        names = [file.rfilename for file in about.siblings or ()]
        files = tuple(names) if resource.is_dataset else model_files(names, resource)
        listed = snapshot(resource, files, dry_run=True)
        missing = sum(file.file_size or 0 for file in listed if file.will_download)
    return Plan(resource, files, missing)


def model_files(names: Sequence[str], resource: Resource) -> tuple[str, ...]:
    """Those of a repository's files that loading the model takes."""
    weights = [WEIGHTS] if WEIGHTS in names else [name for name in names if SHARD.fullmatch(name)]
    if not weights:
        raise UserError(
            f"{resource.flag} {resource.name}: {resource.repository} holds no {WEIGHTS} and no "
            "shards of it; weights in other formats are not loaded"
        )
    return tuple(name for name in names if MODEL_FILE.fullmatch(name)) + tuple(weights)


def snapshot(resource: Resource, files: Sequence[str], *, dry_run: bool) -> Any:
    from huggingface_hub import snapshot_download

    return snapshot_download(
        resource.repository,
        repo_type=resource.kind,
        revision=resource.revision,
        allow_patterns=list(files),
        dry_run=dry_run,
    )


def check_space(plans: Iterable[Plan]) -> None:
    """Before the first byte: is there room for all that is missing?

    Raises:
        UserError: there is not.
    """
    needed: dict[Path, int] = {}
    for plan in plans:
        wanted = {Path(cache_folder()): plan.missing}
        if plan.resource.is_dataset:
            folder = datasets_cache()
            wanted[folder] = wanted.get(folder, 0) + UNPACKED * plan.missing
        for folder, size in wanted.items():
            disk = nearest_existing(folder)
            # Folders of one file system share its space.
            disk = next((d for d in needed if d.stat().st_dev == disk.stat().st_dev), disk)
            needed[disk] = needed.get(disk, 0) + size
    for disk, size in needed.items():
        free = shutil.disk_usage(disk).free
        if size > free:
            raise UserError(
                f"disk: {in_bytes(size)} are missing, and {disk} has {in_bytes(free)} free; free "
                "some space there, or set HF_HOME to a folder on a larger disk"
            )


def fetch(plan: Plan) -> None:
    resource = plan.resource
    was_here = not plan.missing and is_here(resource)
    if plan.missing:
        say(f"{resource}: fetching {in_bytes(plan.missing)}")
    with problems_told(resource):
        if resource.is_dataset:
            import datasets

            # As the dataset is loaded later: what is kept for reading offline is its result.
            datasets.load_dataset(resource.repository, revision=resource.revision)
            # And what tells its commit then, which a repository without a card lacks.
            commit_of(resource.repository, resource.revision)
        else:
            snapshot(resource, plan.files, dry_run=False)
    print(f"{resource}: {'already here' if was_here else 'fetched'}")


def remove_leftovers(resource: Resource) -> None:
    """Parts of files that a killed download left: the client never comes back to them.

    A file that another process is just fetching is locked, and stays.
    """
    import filelock

    locks = resource.folder.parent / ".locks" / resource.folder.name
    for part in (resource.folder / "blobs").glob("*.incomplete"):
        lock = filelock.FileLock(locks / f"{part.name.split('.')[0]}.lock", timeout=0)
        try:
            locks.mkdir(parents=True, exist_ok=True)
            with lock:
                part.unlink(missing_ok=True)
        except (filelock.Timeout, OSError):
            continue


def is_here(resource: Resource) -> bool:
    """Can it be used without the hub?"""
    if resource.is_dataset:
        return dataset_is_here(resource.repository, resource.revision)
    return model_is_here(resource.repository, resource.revision)


def dataset_is_here(repository: str, revision: str | None) -> bool:
    """Have its rows been unpacked, of that revision if one is asked for?

    Their folder is named after the dataset, in snake case, and has a folder for each commit.
    """
    from huggingface_hub import try_to_load_from_cache

    commit = None
    if revision is not None:
        card = try_to_load_from_cache(
            repository, "README.md", repo_type="dataset", revision=revision
        )
        if not isinstance(card, str):
            return False
        commit = Path(card).parent.name
    organisation, name = repository.split("/")
    for info in datasets_cache().glob(f"{organisation}___*/*/*/*/dataset_info.json"):
        unpacked = info.relative_to(datasets_cache()).parts[0].partition("___")[2]
        is_whole = not info.parent.name.endswith(".incomplete")
        is_same = unpacked.replace("_", "") == name.replace("_", "").lower()
        if is_whole and is_same and commit in (None, info.parent.name):
            return True
    return False


def datasets_cache() -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")


def fetch_spacy() -> None:
    """spaCy's English model, which is a package of its own and comes from another server."""
    if find_spec("spacy") is None:
        raise UserError(
            f"--spacy: spaCy is not installed: {sys.executable} -m pip install -r requirements.txt"
        )
    if find_spec(PREFERRED_MODEL) is not None:
        print(f"{PREFERRED_MODEL}: already here")
        return
    say(f"{PREFERRED_MODEL}: fetching about 400 MB")
    command = [sys.executable, "-m", "spacy", "download", PREFERRED_MODEL]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        cause = f"look at what is said above, and try again: {' '.join(command)}"
        if re.search("No space left|Disk quota", done.stderr):
            cause = f"disk: no space is left for {sys.prefix}"
        elif re.search("ConnectionError|Timeout|resolve host|resolution", done.stderr):
            cause = "network: it comes from github.com, which may be out of reach on its own"
        raise UserError(
            f"--spacy: {PREFERRED_MODEL} could not be installed ({said[:120]}); {cause}; without "
            "it, lemmas come from a lookup table"
        )
    print(f"{PREFERRED_MODEL}: fetched")


def show_list() -> None:
    """Every name that can be given, where it comes from, and whether it is here."""
    rows = []
    for name in dataset_names():
        repository = hub_datasets().get(name)
        about = "comes with the project"
        if name in cloned_datasets():
            about = f"not on the hub: git clone {cloned_datasets()[name]}"
        elif repository is not None:
            about = described(Resource("--dataset", name, repository))
        rows.append(("--dataset", name, about))
    for name, path in MODEL_PATHs.items():
        is_bundled = os.path.isdir(path)
        about = (
            "comes with the project" if is_bundled else described(Resource("--model", name, path))
        )
        rows.append(("--model", name, about))
    spacy = "here" if find_spec(PREFERRED_MODEL) else "not here"
    rows.append(("--spacy", PREFERRED_MODEL, spacy))
    for flag, name, about in rows:
        print(f"{flag:10} {name:22} {about}")


def described(resource: Resource) -> str:
    return f"{resource.repository}: {'here' if is_here(resource) else 'not here'}"


def in_bytes(size: int) -> str:
    """`6.4 GB`, `3.7 MB`, `12 kB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{-(-size // 1000)} kB"


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="download_resources.sh", description=__doc__)
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME",
        help=f"fetch a dataset: {', '.join(hub_datasets())}, or a hub id; can be given several "
        "times",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="fetch a model: alias of constants.py or hub id; can be given several times",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of the dataset")
    parser.add_argument(
        "--dataset_only",
        action="store_true",
        help="fetch no model; all datasets unless --dataset names one",
    )
    parser.add_argument(
        "--spacy", action="store_true", help=f"install {PREFERRED_MODEL}, which makes better lemmas"
    )
    parser.add_argument(
        "--list", action="store_true", help="show every name, and what is here already"
    )
    parsed = parser.parse_args(args)
    if parsed.dataset_only and parsed.model:
        parser.error("--dataset-only fetches no model: leave it or --model out")
    if parsed.list:
        for flag in ("model", "dataset", "dataset_only", "spacy"):
            if getattr(parsed, flag):
                parser.error(f"--{flag}: --list only shows, and fetches nothing: leave one out")
    if parsed.revision is not None and len(parsed.model) != 1:
        parser.error("--revision: it is one model's; give one --model")
    from_hub = {name for name in parsed.dataset if name in hub_datasets() or is_hub_id(name)}
    if parsed.dataset_revision is not None and len(from_hub) != 1:
        parser.error(
            f"--dataset_revision: give one --dataset of {', '.join(hub_datasets())}, or a hub id"
        )
    if not (parsed.dataset or parsed.model or parsed.dataset_only or parsed.spacy or parsed.list):
        parser.error("nothing to do: give --dataset, --model, --spacy or --list")
    return parsed


if __name__ == "__main__":
    run(main, parse_args())
