"""Fetching models and datasets from a hub on loopback with the real clients, and what goes wrong.

Starting the clients costs seconds, so most commands are run by one process that takes them one at
a time (`Driver`, the end of this file), with a cache of their own, and are judged by one test each.
"""

import contextlib
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from hub import (
    GOOD_TOKEN,
    STRANGERS_TOKEN,
    Hub,
    write_model,
    write_myriad_lama,
    write_standard_content,
)
from huggingface_hub import constants, errors

from self_ensemble.cli import download as resources
from self_ensemble.data.registry import dataset_names, hub_datasets
from self_ensemble.models.aliases import MODEL_PATHs
from self_ensemble.system import hub_errors

pytestmark = pytest.mark.skipif(find_spec("datasets") is None, reason="needs datasets")

ROOT = Path(__file__).resolve().parents[2]
ALIAS = "llama3.2_3b_it"
MODEL = MODEL_PATHs[ALIAS]
MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
SHARDS = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
# A client keeps what arrived in steps of so many bytes.
STEP = 10 * 2**20
CLOSED = "http://127.0.0.1:9"  # nobody listens


class Driver:
    """A process that runs commands, each with what the hub sent meanwhile."""

    def __init__(self, environment, hub):
        self.hub = hub
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment | {"PYTHONPATH": f"{ROOT}:{ROOT / 'test/support'}"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, what, *argv, **settings):
        self.hub.log.clear()
        case = {"what": what, "argv": [arg for arg in argv if arg is not None], **settings}
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        done = json.loads(self.process.stdout.readline())
        return {**done, "sent": self.hub.sent(), "log": list(self.hub.log)}

    def close(self):
        self.process.kill()  # at once; its libraries would take seconds to leave
        self.process.communicate()


def write_shards(folder: Path) -> None:
    """A model in two shards, the first of more than two of a client's steps."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    (folder / SHARDS[0]).write_bytes(os.urandom(2 * STEP + 5))
    (folder / SHARDS[1]).write_bytes(b"small")
    index = {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    others = [
        f"org/{name}"
        for name in ("gated", "private", "busy", "killed", "limited", "pickled", "wide")
    ]
    write_standard_content(folder, models=[ALIAS, *others], num_facts=30)
    write_shards(folder / "models" / "org" / "shards")
    write_myriad_lama(folder / "datasets" / f"{hub_datasets()['myriadlama']}@v1", 3)
    (folder / "models" / "org" / "pickled" / "model.safetensors").unlink()
    access = {"org/gated": "gated", "org/private": "private", hub_datasets()["myriadlama"]: "gated"}
    with Hub(folder, access=access, broken={"org/busy": 503}) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def shell(environment, *argv, before=""):
    """The script as a user gives it."""
    done = subprocess.run(
        ["bash", "-c", f'{before} exec ./download_resources.sh "$@"', "bash", *argv],
        env={"PYTHON": sys.executable} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def drivers(hub, home):
    """One with the hub, and one after it is gone; started together, since that takes seconds."""
    environments = hub.environment(home), hub.offline(home) | {"HF_ENDPOINT": CLOSED}
    started = [Driver(environment, hub) for environment in environments]
    yield [driver.run for driver in started]
    for driver in started:
        driver.close()


@pytest.fixture(scope="module")
def fetched(hub, home, drivers):
    """From nothing, by the script as a user gives it."""
    result = shell(hub.environment(home), "--dataset", "webqa", "--model", ALIAS)
    return (*result, hub.sent())


@pytest.fixture(scope="module")
def killed(hub, home):
    """A fetch that ended by SIGKILL in the middle of the weights: the parts of files it left."""
    hub.hold("model.safetensors", after=1_000_000)
    argv = [sys.executable, "-m", "self_ensemble.cli.download", "--model", "org/killed"]
    process = subprocess.Popen(argv, env=hub.environment(home), stderr=subprocess.DEVNULL)
    try:
        assert hub.held.wait(30)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resources, "cache_folder", lambda: str(home / "hub"))
            resources.remove_leftovers(resources.Resource("--model", "org/killed", "org/killed"))
        assert parts_of_files(home), "taken away from a process that was writing it"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return parts_of_files(home)


def parts_of_files(home):
    return list(home.rglob("*.incomplete"))


@pytest.fixture(scope="module")
def online(drivers, fetched, killed):
    return drivers[0]


@pytest.fixture(scope="module")
def offline(drivers, online):
    online("fetch", "--model", "org/limited", limit=1_000_000)
    return drivers[1]


def assert_refused(done, *named, longest=500):
    assert done["code"] == 2, done
    assert "Traceback" not in done["err"]
    *_, last = done["err"].splitlines()
    assert last.startswith("error: ") and len(last) < longest, last
    for part in named:
        assert part in last, last


# ---- fetching -----------------------------------------------------------------------------------


def test_from_nothing(fetched, home):
    code, out, err, sent = fetched
    assert code == 0, err
    assert out.splitlines() == [
        "webqa (stanfordnlp/web_questions): fetched",
        f"{ALIAS} ({MODEL}): fetched",
    ]
    tables = {f"data/{split}-00000-of-00001.parquet" for split in ("train", "test")}
    assert set(sent) == MODEL_FILES | tables | {"README.md"}
    assert sent["model.safetensors"] == (ROOT / "demo/model/model.safetensors").stat().st_size
    assert sent["README.md"] < 1000  # the dataset's card, not the model's


def test_a_second_run_fetches_nothing(online):
    done = online("fetch", "--dataset", "webqa", "--model", ALIAS)
    assert (done["code"], done["sent"]) == (0, {}), done
    assert done["out"].count("already here") == 2 and done["log"]


def test_only_what_is_missing_is_fetched(online, home):
    """A revision whose files are those of another but for its card needs no second copy."""
    done = online("fetch", "--model", ALIAS, "--revision", "v1")
    assert (done["code"], done["sent"]) == (0, {}), done
    folder = home / "hub" / f"models--{MODEL.replace('/', '--')}"
    commits = {(folder / "refs" / name).read_text() for name in ("main", "v1")}
    assert len(commits) == 2
    for commit in commits:
        assert {path.name for path in (folder / "snapshots" / commit).iterdir()} == MODEL_FILES


def test_a_dropped_connection_is_resumed(hub, online):
    hub.cut(SHARDS[0], after=2 * STEP + 1)
    done = online("fetch", "--model", "org/shards")
    assert done["code"] == 0, done
    parts = [(r.status, r.first_byte, r.num_bytes) for r in done["log"] if r.file == SHARDS[0]]
    assert parts == [(200, 0, 2 * STEP + 1), (206, 2 * STEP, 5)]
    assert set(SHARDS) < set(done["sent"])


def test_killed_and_run_again(killed, online, home):
    assert killed, "the client no longer leaves parts of files: remove_leftovers can go"
    done = online("fetch", "--model", "org/killed")
    assert done["code"] == 0 and set(done["sent"]) <= MODEL_FILES, done
    assert not parts_of_files(home)
    again = online("fetch", "--model", "org/killed")
    assert again["sent"] == {} and "already here" in again["out"]
    assert online("generate", "--model", "org/killed")["code"] == 0


# ---- what keeps a model or a dataset away: fetching, generating, and loading a dataset ----------

GATED = ("org/gated", "licence gate", "https://huggingface.co/org/gated")
# Repository, token, what the sentence holds.
REFUSALS = {
    "gated, no token": ("org/gated", None, (*GATED, "hf auth login", "HF_TOKEN")),
    "gated, not let in": ("org/gated", STRANGERS_TOKEN, (*GATED, "ask for access")),
    "private, no token": ("org/private", None, ("not found", "hf auth login")),
    "private, not let in": ("org/private", STRANGERS_TOKEN, ("not found", "your account")),
    "refused token": ("org/gated", "hf_revoked", ("login", "refuses your token", "hf auth login")),
    "missing": ("org/none", None, ("not found", "org/none", "check the name")),
    "missing, known to the hub": ("org/none", GOOD_TOKEN, ("not found", "org/none")),
    "busy": ("org/busy", None, ("busy or down", "503", "try again")),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_by_the_hub(hub, online, home, name):
    repository, token, named = REFUSALS[name]
    for what in ("fetch", "generate"):
        done = online(what, "--model", repository, token=token, hurry=True)
        assert_refused(done, "--model", *named)
        assert done["sent"] == {}
    assert not list(home.glob(f"hub/models--{repository.replace('/', '--')}/snapshots/*/*"))


def test_let_in(online):
    done = online("fetch", "--model", "org/gated", "--model", "org/private", token=GOOD_TOKEN)
    assert done["code"] == 0 and done["out"].count(": fetched") == 2


def test_a_revision_that_is_not_there(online):
    for what in ("fetch", "generate"):
        for revision in ("v9", "0" * 40):
            done = online(what, "--model", ALIAS, "--revision", revision)
            assert_refused(
                done, "--revision", MODEL, f"no branch, tag or commit named '{revision}'"
            )


def test_no_safetensors(online):
    done = online("fetch", "--model", "org/pickled")
    assert_refused(done, "org/pickled", "holds no model.safetensors")
    assert done["sent"] == {}
    done = online("generate", "--model", "org/pickled")
    assert_refused(done, "cannot load the weights of org/pickled", "model.safetensors")
    assert "pytorch_model.bin" not in done["sent"]


def test_a_revision_is_a_model_of_its_own(online):
    """Its fingerprint, which tells results apart, is the hub's commit."""
    made = [online("source", ALIAS, revision) for revision in (None, "main", "v1")]
    first, same, other = (done["out"] for done in made)
    assert re.fullmatch("[0-9a-f]{40}", first) and first == same != other


def test_space_is_looked_at_before_the_first_byte(online):
    done = online("fetch", "--model", "org/wide", free=3_000_000)
    assert_refused(done, "disk: 3.7 MB are missing", "3.0 MB free", "HF_HOME")
    assert done["sent"] == {}
    assert online("fetch", "--model", ALIAS, free=10)["code"] == 0  # all of it is here


def test_a_disk_that_is_full_after_all(online, home):
    """By a real limit on what may be written."""
    done = online("fetch", "--model", "org/limited", limit=1_000_000)
    assert_refused(done, "disk: cannot write to", "HF_HOME")
    assert done["sent"]["model.safetensors"] and not parts_of_files(home)
    assert online("described", "org/limited")["out"] == "org/limited: not here"


@pytest.mark.parametrize(
    "token, named",
    [(None, ("licence gate", "hf auth login")), (STRANGERS_TOKEN, ("licence gate", "ask for"))],
)
def test_a_gated_dataset(online, token, named):
    page = f"https://huggingface.co/datasets/{hub_datasets()['myriadlama']}"
    done = online("fetch", "--dataset", "myriadlama", token=token)
    assert_refused(done, "--dataset myriadlama", page, *named)
    loaded = online("dataset", hub_datasets()["myriadlama"], token=token)
    assert page in loaded["out"] and all(part in loaded["out"] for part in named), loaded


def test_datasets_that_are_not_there(online):
    for token in (None, GOOD_TOKEN):
        done = online("dataset", "org/none", token=token)
        assert "not found" in done["out"] and "no dataset org/none" in done["out"], done
    done = online("dataset", hub_datasets()["webqa"], "v9")
    assert done["out"].startswith("revision: ") and "'v9'" in done["out"]


# ---- without the hub ----------------------------------------------------------------------------


def test_what_was_fetched_is_used_offline(offline):
    done = offline("dataset", hub_datasets()["webqa"])
    assert done["out"] == "{'train': 20, 'test': 40}"
    done = offline("generate", "--model", ALIAS)
    assert done["code"] == 0, done
    done = offline("generate", "--model", ALIAS, "--revision", "v1", "--overwrite")
    assert done["code"] == 0, done
    done = offline("fetch", "--dataset", "webqa", "--model", ALIAS)
    assert done["code"] == 0 and done["out"].count("here; not compared with the hub: HF_HUB") == 2


@pytest.mark.parametrize("repository", ["org/none", "org/limited"])
def test_what_was_not_fetched_or_in_part_only(offline, repository):
    for what, revision in (("fetch", ()), ("generate", ()), ("generate", ("--revision", "v1"))):
        done = offline(what, "--model", repository, *revision)
        command = " ".join(("./download_resources.sh --model", repository, *revision))
        assert_refused(done, "not wholly, on this machine", "HF_HUB_OFFLINE=1", command)
    if repository == "org/none":
        told = offline("dataset", repository, "v 1")["out"]
        assert told.endswith(f"sh --dataset {repository} --dataset_revision 'v 1'"), told


def test_a_revision_of_a_dataset(online, offline):
    argv = ("--dataset", "myriadlama", "--dataset-revision", "v1")
    done = offline("fetch", *argv)
    assert_refused(done, "HF_HUB_OFFLINE=0 ./download_resources.sh --dataset myriadlama --dataset_")
    assert done["err"].strip().endswith(" --dataset_revision v1")
    for told, is_sent in (("fetched", True), ("already here", False)):
        done = online("fetch", *argv, token=GOOD_TOKEN)
        assert done["code"] == 0 and told in done["out"] and bool(done["sent"]) == is_sent, done
    assert offline("dataset", hub_datasets()["myriadlama"], "v1")["out"] == "{'train': 33}"
    assert "here; not compared" in offline("fetch", *argv)["out"]
    assert_refused(offline("fetch", *argv[:-1], "v2"), "not wholly", "--dataset_revision v2")


def test_no_network(offline):
    named = ("network: ", CLOSED, "cannot be reached", "check the connection", "HF_ENDPOINT")
    there = {"unreachable": True, "hurry": True}
    for what in ("fetch", "generate"):
        assert_refused(offline(what, "--model", "org/none", **there), *named)
    for done in (
        offline("dataset", "org/none", **there),
        # Here in part only: whatever a library makes of that.
        offline("explain", "org/limited", "no tokenizer", **there),
    ):
        assert all(part in done["out"] for part in named), done
    done = offline("explain", MODEL, "no tokenizer", **there)
    assert done["out"] == "None"
    done = offline("fetch", "--dataset", "webqa", "--model", ALIAS, **there)
    assert done["code"] == 0 and done["out"].count("it cannot be reached") == 2


def test_clients_ask_for_nothing_that_this_hub_does_not_know(hub, online, offline):
    assert hub.unknown == []


# ---- errors that a hub on loopback does not make ------------------------------------------------


def answered(status, said=None):
    headers = {"X-Error-Message": said} if said else {}
    response = SimpleNamespace(status_code=status, headers=headers, request=None)
    return errors.HfHubHTTPError("no", response=response, server_message=said)


def wrapped(inner):
    """As a library does it that hides what was behind."""
    try:
        try:
            raise inner
        except Exception:
            raise ValueError("cannot read the file") from None
    except ValueError as outer:
        return outer


ODD = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), "disk", "it is full"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk", "your quota"),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), "disk", "may write to"),
    "not ours": (PermissionError(errno.EACCES, "Permission denied"), "disk", "may write to"),
    "too many": (answered(429), "busy", "answers 429"),
    "no scope": (answered(403, "enable gated access"), "login", "(enable gated access)"),
    "login page": (errors.FileMetadataError("no commit"), "network", "not answer as a hub"),
    "cut": (OSError("Consistency check failed: 5 of 9"), "network", "arrived cut short"),
    "no name": (socket.gaierror(-2, "Name not known"), "network", "cannot be reached (["),
    "none of these": (KeyError("model_type"), None, None),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_errors(monkeypatch, name):
    error, kind, part = ODD[name]
    monkeypatch.setattr(hub_errors, "is_here", lambda *_: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for raised in (error, wrapped(error)):
        problem = hub_errors.explain(raised, "org/name")
        if kind is None:
            assert problem is None
        else:
            assert problem.kind == kind and part in problem.text, problem


def test_a_model_is_here_with_all_of_its_shards(monkeypatch, tmp_path):
    config = tmp_path / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(config))
    write_shards(tmp_path / "whole")
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json", *SHARDS):
        assert not hub_errors.is_here("org/name", None), name
        shutil.copy(tmp_path / "whole" / name, tmp_path)
    assert hub_errors.is_here("org/name", None)
    (tmp_path / "tokenizer.json").unlink()
    assert not hub_errors.is_here("org/name", None)


# ---- the command line ---------------------------------------------------------------------------


def run(capfd, *argv):
    from small import run_script

    code = run_script(resources, *argv)
    out, err = capfd.readouterr()
    return {"code": code, "out": out, "err": err}


def test_shellcheck():
    done = subprocess.run(
        [shutil.which("shellcheck", path=Path(sys.executable).parent), "download_resources.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_script_is_a_front(tmp_path):
    code, out, err = shell(dict(os.environ), "--help")
    assert (code, err) == (0, "") and out.startswith("usage: download_resources.sh")
    for flag in ("--dataset", "--dataset_only", "--model", "--spacy", "--list"):
        assert flag in out
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    code, out, err = shell({**os.environ, "PYTHON": str(old)}, "--list")
    assert (code, out) == (2, "") and f"Python 3.11 or newer is needed, and {old} is not" in err


@pytest.mark.parametrize(
    "argv, named",
    [
        ([], "nothing to do"),
        (["--model", "demo", "--dataset-only"], "--dataset-only fetches no model"),
        (["--revision", "v1"], "one --model"),
        (["--dataset-only", "--dataset-revision", "v1"], "one --dataset of webqa, myriadlama"),
        (["--dataset", "demo", "--dataset-revision", "v1"], "one --dataset of webqa, myriadlama"),
        (["--list", "--model", "demo"], "--model: --list only shows"),
        (["--list", "--dataset", "demo"], "--dataset: --list only shows"),
        (["--list", "--dataset-only"], "--dataset_only: --list only shows"),
        (["--list", "--spacy"], "--spacy: --list only shows"),
        (["--model", "demo", "--revision", "v1"], "--revision v1: "),
        (["--dataset", "squad"], "there are demo, demo_choices, webqa, myriadlama, pararel"),
        (["--dataset", "pararel"], "git clone https://github.com/yanaiela/pararel"),
        (["--model", "nowhere"], "'nowhere' is no folder"),
    ],
)
def test_mistakes(capfd, argv, named):
    assert_refused(run(capfd, *argv), named, longest=3000)


def test_what_needs_no_hub(capfd, small):
    done = run(capfd, "--dataset", "demo", "--model", "demo", "--model", small.folder)
    assert done["code"] == 0 and done["out"].count("nothing to fetch") == 3


def test_a_third_dataset_that_no_hub_has(capfd, monkeypatch):
    names = resources.dataset_names
    monkeypatch.setattr(resources, "dataset_names", lambda: (*names(), "capitals"))
    assert resources.asked_for(resources.parse_args(["--dataset", "capitals"])) == []
    assert capfd.readouterr().out.startswith("capitals: its questions come with the project")
    assert len(resources.asked_for(resources.parse_args(["--dataset-only"]))) == 2


def test_the_list_has_every_name(online):
    lines = [line.split() for line in online("fetch", "--list")["out"].splitlines()]
    named = {(line[0], line[1]) for line in lines}
    assert {("--model", name) for name in MODEL_PATHs} < named
    assert {("--dataset", name) for name in dataset_names()} <= named
    [pararel] = [line for line in lines if line[1] == "pararel"]
    assert " ".join(pararel[2:]) == "not on the hub: git clone https://github.com/yanaiela/pararel"
    assert ["--model", ALIAS, f"{MODEL}:", "here"] in lines
    assert ["--model", "llama3.2_1b", "meta-llama/Llama-3.2-1B:", "not", "here"] in lines
    assert ["--dataset", "webqa", "stanfordnlp/web_questions:", "here"] in lines


def test_the_list_without_the_client(capfd, monkeypatch):
    monkeypatch.setattr(resources, "find_spec", lambda name: None)
    assert_refused(run(capfd, "--list"), "huggingface_hub is not installed", "pip install")


def test_all_datasets_and_no_model(online):
    done = online("fetch", "--dataset-only", token=GOOD_TOKEN)
    assert done["code"] == 0 and all(
        "data/" in name or name == "README.md" for name in done["sent"]
    )
    assert [line.split(":")[0].split()[0] for line in done["out"].splitlines()] == [
        "demo",
        "demo_choices",
        "pararel",
        *hub_datasets(),
    ]


SPACY_ENDS = {
    "works": ("", 0, ()),
    "no network": ("ConnectionError: Name or service not known", 1, ("network", "github.com")),
    "disk": ("OSError: [Errno 28] No space left on device", 1, ("disk: no space",)),
    "else": ("No compatible package", 1, ("No compatible package", "spacy download")),
}


@pytest.mark.parametrize("name", SPACY_ENDS)
def test_spacy(capfd, tmp_path, monkeypatch, name):
    """spaCy stands in for itself: its command is run as given, and ends in this way."""
    says, status, named = SPACY_ENDS[name]
    (tmp_path / "spacy").mkdir()
    (tmp_path / "spacy" / "__init__.py").touch()
    (tmp_path / "spacy" / "__main__.py").write_text(
        f"import sys\nprint({says!r}, file=sys.stderr)\n"
        f"sys.exit({status} if sys.argv[1:] == ['download', 'en_core_web_lg'] else 3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(resources, "PREFERRED_MODEL", "en_core_web_lg")
    monkeypatch.setattr(resources, "find_spec", lambda name: name == "spacy" or None)
    done = run(capfd, "--spacy")
    if status == 0:
        assert done["code"] == 0 and "en_core_web_lg: fetched" in done["out"]
    else:
        assert_refused(done, "--spacy", *named)


def test_a_list_before_anything_is_installed(capfd, monkeypatch):
    monkeypatch.setattr(resources, "find_spec", lambda name: None)
    assert_refused(run(capfd, "--list"), "huggingface_hub is not installed", "requirements.txt")


# ---- the process that the commands run in -------------------------------------------------------


def drive() -> None:
    """Runs the commands that come in on stdin, one a line, and tells how each ended."""
    import tempfile
    import time

    import datasets
    from small import run_script

    import flex_attention_generate
    from self_ensemble.models import loading
    from self_ensemble.models.config import ModelConfig

    def run_case(case, folder):
        argv = case["argv"]
        if case["what"] == "fetch":
            return run_script(resources, *argv)
        if case["what"] == "generate":
            short = ("--max_samples", 1, "--max_new_tokens", 1, "--output_dir", folder)
            return run_script(flex_attention_generate, *argv, *short)
        if case["what"] == "described":
            print(resources.described(resources.Resource("--model", argv[0], argv[0])), end="")
            return 0
        revision = argv[1] if argv[1:] else None
        if case["what"] == "source":
            source = loading.find_model(ModelConfig(name=argv[0], revision=revision, device="cpu"))
            print(source.fingerprint, end="")
            return 0
        if case["what"] == "explain":
            print(hub_errors.explain(ValueError(argv[1]), argv[0]), end="")
            return 0
        try:
            loaded = datasets.load_dataset(argv[0], revision=revision)
        except Exception as error:
            problem = hub_errors.explain(error, argv[0], revision=revision, dataset=argv[0])
            print(f"{problem.kind}: {problem.text}", end="")
            return 2
        print({split: len(rows) for split, rows in loaded.items()}, end="")
        return 0

    for line in sys.stdin:
        case = json.loads(line)
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            if case.get("token"):
                patch.setenv("HF_TOKEN", case["token"])
            if "free" in case:
                usage = type(shutil.disk_usage("."))(10**12, 0, case["free"])
                patch.setattr(shutil, "disk_usage", lambda path: usage)  # noqa: B023
            if "unreachable" in case:
                patch.setattr(constants, "HF_HUB_OFFLINE", False)
                patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
            if "hurry" in case:  # the clients wait longer from one try to the next
                patch.setattr(time, "sleep", lambda seconds: None)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.get("limit", soft), hard))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run_case(case, folder)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}), flush=True)


if __name__ == "__main__":
    drive()
