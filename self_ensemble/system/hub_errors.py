"""What went wrong between this machine and the model hub: its kind, and what to do about it.

Libraries wrap the hub's errors, each in its own way, and some hide them behind texts about
something else. `explain` looks through the wrapping:

    try:
        model = AutoModel.from_pretrained("organisation/name", revision=revision)
    except Exception as error:
        problem = explain(error, "organisation/name", revision=revision)
        raise UserError(f"--model: {problem.text}" if problem else ...) from error

Of others' packages nothing is imported at the top; huggingface_hub when it has failed already.
"""

import errno
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# By errno: what is wrong with the disk. EFBIG is what a limit on a file's size (`ulimit -f`) gives.
DISK_ERRORS = {
    errno.ENOSPC: "it is full",
    errno.EDQUOT: "your quota on it is used up",
    errno.EFBIG: "a file would be larger than it, or `ulimit -f`, allows",
    errno.EROFS: "it is mounted read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Where only a text is left of the error.
DISK_IS_FULL = ("No space left on device", "Disk quota exceeded", "Not enough disk space")

# By name: the hub's client changed its HTTP library, which kept its classes' names.
TRANSPORT_ERRORS = {"TransportError", "TimeoutException", "ConnectionError", "gaierror"}

# Any of them makes a tokenizer. The weights may also be shards, which an index names.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
WEIGHTS = "model.safetensors"

SECONDS_TO_ANSWER = 30

# An error, what it was raised from, and so on.
Chain = Sequence[BaseException]

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong.

    kind: ``network``, ``login``, ``licence gate``, ``not found``, ``revision``, ``disk``, ``busy``
        or ``offline``.
    text: one sentence, without a full stop, that names it and says what to do.
    """

    kind: str
    text: str


def explain(
    error: BaseException,
    repository: str,
    *,
    revision: str | None = None,
    dataset: str | None = None,
) -> Problem | None:
    """The hub's, the network's or the disk's part in an error; None where they have none.

    Args:
        error: whatever a library raised.
        repository: the hub id that was to be read.
        revision: the branch, tag or commit that was asked for.
        dataset: what `--dataset` calls the repository; None if it holds a model.
    """
    from huggingface_hub import HfApi

    problem = _told(error, repository, revision, dataset)
    if problem is not None or dataset or is_here(repository, revision):
        return problem
    # To libraries a file that could not be fetched is simply not there, and they say anything.
    if _is_offline():
        return _offline(repository, revision, None)
    try:
        HfApi().repo_info(repository, revision=revision, timeout=SECONDS_TO_ANSWER)
    except Exception as answer:  # from a HTTP library, which is not the same in all versions
        return _told(answer, repository, revision, dataset)
    return None


def _told(
    error: BaseException, repository: str, revision: str | None, dataset: str | None
) -> Problem | None:
    """From what the error, or one that it was raised from, tells."""
    from huggingface_hub import errors

    chain = list(_chain(error))

    def first(*kinds: type[BaseException]) -> Any:
        return next((link for link in chain if isinstance(link, kinds)), None)

    is_dataset = dataset is not None
    what = "dataset" if is_dataset else "model"
    # A gate's error is also one about a missing repository: the narrower comes first.
    if gate := first(errors.GatedRepoError):
        return _gate(repository, _status(gate), is_dataset=is_dataset)
    if first(errors.RevisionNotFoundError):
        return Problem("revision", _no_revision(repository, revision, is_dataset=is_dataset))
    if missing := first(errors.RepositoryNotFoundError):
        return _missing(repository, what, is_guest=_status(missing) == 401)
    if answer := first(errors.HfHubHTTPError):
        problem = _refusal(answer, repository)
        if problem is not None:
            return problem
    unseen = (errors.LocalEntryNotFoundError, ConnectionError)
    if first(errors.OfflineModeIsEnabled) or (_is_offline() and first(*unseen)):
        return _offline(repository, revision, dataset)
    if any(_kinds(link) & TRANSPORT_ERRORS for link in chain):
        return Problem("network", _unreachable(chain))
    for link in chain:
        if isinstance(link, OSError) and link.errno in DISK_ERRORS:
            return _disk(link.errno)
    return _hidden(chain, repository, revision, is_dataset=is_dataset) or _odd_answer(chain)


def is_here(repository: str, revision: str | None) -> bool:
    """Is a model in the cache: configuration, tokenizer and all of its weights?"""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    if not isinstance(config, str):
        return False
    folder = Path(config).parent
    if not any((folder / name).exists() for name in TOKENIZERS):
        return False
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).exists() or not index.exists():
        return (folder / WEIGHTS).exists()
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / shard).exists() for shard in shards)


def _gate(repository: str, status: int | None, *, is_dataset: bool) -> Problem:
    # A mirror has no page to ask at, so the address is the public hub's whatever HF_ENDPOINT is.
    page = f"https://huggingface.co/{'datasets/' if is_dataset else ''}{repository}"
    if status == 401:
        text = f"{repository} is behind a licence gate: accept its licence at {page}, then {LOG_IN}"
    else:
        text = (
            f"{repository} is behind a licence gate, and your account has not been let in: ask for "
            f"access at {page}, and try again once it is granted (a fine-grained token must also "
            "allow reading gated repositories)"
        )
    return Problem("licence gate", text)


def _missing(repository: str, what: str, *, is_guest: bool) -> Problem:
    if is_guest:
        text = (
            f"not found: the hub shows no {what} {repository} to someone not logged in; check the "
            f"name, or if it is private {LOG_IN}"
        )
    else:
        text = (
            f"not found: the hub has no {what} {repository} that your account may see; check the "
            "name, and whether your token may read it"
        )
    return Problem("not found", text)


def _no_revision(repository: str, revision: str | None, *, is_dataset: bool) -> str:
    return (
        f"{repository} has no branch, tag or commit named {revision or 'main'!r}; leave "
        f"{'--dataset_revision' if is_dataset else '--revision'} out for its newest state"
    )


def _refusal(answer: Any, repository: str) -> Problem | None:
    """From the status of an answer that is about no repository, revision or file."""
    status = _status(answer)
    if status == 401:
        text = f"login: the hub refuses your token for {repository}; {LOG_IN} to a valid one"
        return Problem("login", text)
    if status == 403:
        said = " ".join((answer.server_message or "").split())[:200]
        text = (
            f"login: your token may not read {repository}{f' ({said})' if said else ''}; {LOG_IN}"
        )
        return Problem("login", f"{text} to one with the permission")
    if status is not None and (status == 429 or status >= 500):
        text = f"the hub is busy or down: {_endpoint()} answers {status}; try again in some minutes"
        return Problem("busy", text)
    return None


def _disk(number: int) -> Problem:
    text = f"disk: cannot write to {cache_folder()}: {DISK_ERRORS[number]}; "
    if number in FULL:
        text += "free some space there, or set HF_HOME to a folder on a larger disk"
    else:
        text += "set HF_HOME to a folder that you may write to"
    return Problem("disk", text)


def _hidden(
    chain: Chain, repository: str, revision: str | None, *, is_dataset: bool
) -> Problem | None:
    """Where only a text is left of the hub's error: `datasets` drops the error itself."""
    for link in chain:
        if type(link).__name__ != "DatasetNotFoundError":
            continue
        said = str(link)
        if "gated" in said:
            status = 401 if "authenticated" in said else 403
            return _gate(repository, status, is_dataset=is_dataset)
        if said.startswith("Revision"):
            return Problem("revision", _no_revision(repository, revision, is_dataset=True))
        return _missing(repository, "dataset", is_guest=not _has_token())
    return None


def _odd_answer(chain: Chain) -> Problem | None:
    """What a text tells: something else than a hub answered, the disk is full, a file broke off
    for good, or nothing came back."""
    for link in chain:
        said = " ".join(str(link).split())
        if "FileMetadataError" in _kinds(link) or "does not seem to be served by" in said:
            text = (
                f"network: {_endpoint()} does not answer as a hub does; check HF_ENDPOINT, and "
                "that no proxy or login page stands before it"
            )
            return Problem("network", text)
        if any(words in said for words in DISK_IS_FULL):
            return _disk(errno.ENOSPC)
        if said.startswith("Consistency check failed"):
            return Problem("network", "network: a file arrived cut short; start the command again")
    # Raised alone where the library has already dealt with what is behind it.
    if any("LocalEntryNotFoundError" in _kinds(link) for link in chain):
        return Problem("network", _unreachable(chain))
    return None


def _unreachable(chain: Chain) -> str:
    said = next((str(link) for link in chain if _kinds(link) & TRANSPORT_ERRORS), "")
    why = f" ({' '.join(said.split())[:120]})" if said else ""
    return (
        f"network: {_endpoint()} cannot be reached{why}; check the connection, the proxy and "
        "HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use only what is on this machine already"
    )


def _offline(repository: str, revision: str | None, dataset: str | None) -> Problem:
    flags = ["--dataset", dataset] if dataset else ["--model", repository]
    if revision is not None:
        flags += ["--dataset_revision" if dataset else "--revision", revision]
    text = (
        f"{repository} is not, or not wholly, on this machine, and HF_HUB_OFFLINE=1 forbids to "
        f"fetch it; with a network: HF_HUB_OFFLINE=0 ./download_resources.sh {shlex.join(flags)}"
    )
    return Problem("offline", text)


def cache_folder() -> str:
    """Where the hub's files are kept: HF_HUB_CACHE, or `hub` in HF_HOME."""
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def token_file() -> str:
    """Where the client looks for a token that is in no variable: HF_TOKEN_PATH, or in HF_HOME."""
    from huggingface_hub import constants

    return constants.HF_TOKEN_PATH


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on; also where `from None` hides that."""
    seen = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
