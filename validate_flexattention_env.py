"""Say whether this machine can run the toolkit, and prove what the method promises on a model.

    python validate_flexattention_env.py
    python validate_flexattention_env.py --test-flex-attention
    python validate_flexattention_env.py --model llama3.2_3b

Each line is `ok`, a `warning` (the main job runs, something else does not or was not tested) or
`failed`, with what to do. `--model` adds that model's certificate: where its tokenizer's prompts
are cut, and each of the method's promises proved on its own weights, `passed` or `failed` with the
figure.

Exit status: 0 if the main job (`flex_attention_generate.py`) would run, with that model where one
is given; 1 if anything failed; 2 for a mistake on the command line.
"""

import json
import os
import platform
import re
import shutil
import sys
import textwrap
import threading
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from self_ensemble.cli.parser import Parser, run
from self_ensemble.models.aliases import resolve_model
from self_ensemble.models.memory import GIB, available_memory
from self_ensemble.system.bundled import DEMO_MODEL, DEMO_QUESTIONS
from self_ensemble.system.console import quoted, say
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import nearest_existing

OK, WARNING, FAILED = "ok", "warning", "failed"

# The tested range: from these versions, where they are older than what requirements.txt pins, up
# to the pins.
OLDEST_TESTED = {"python": "3.11", "torch": "2.11.0", "transformers": "5.17.0"}
NEWEST_PYTHON_TESTED = "3.12"

# What can be absent while the main job runs, and what needs it.
LEMMAS = "flex_attention_generate.py and generate.py with --lemmaize, score.py --lemmas recompute"
NEEDED_ONLY_BY = {
    "datasets": "--dataset webqa and --dataset myriadlama without --data_dir",
    "matplotlib": "score.py --plot and --html, debug_flexattention.py --save",
    "scipy": "score.py and benchmark/quality.py",
    "spacy": LEMMAS,
    "spacy-lookups-data": LEMMAS,
}

LITTLE_MEMORY, LITTLE_ROOM, LITTLE_CACHE = 2 * GIB, GIB // 2, 10 * GIB
SMALLEST_DEMO = 2**20  # bytes of its weights; what git-lfs puts in a file's place is smaller

HUB = "https://huggingface.co"
HUB_SECONDS = 3

# The question that FlexAttention is tried on: segments behind a prefix, several heads to a key.
TRIED_PREFIX, TRIED_LENGTHS = 37, (12, 7, 1, 19, 9)
TRIED_HEADS, TRIED_KV_HEADS, TRIED_SIZE = 4, 2, 64

# Demo questions that a certificate asks, how many wordings of each, and solved examples before.
ASKED, WORDINGS, FEW_SHOT = 3, 5, 5

SHOWN_TOKENS = 10  # of a part, without --verbose


@dataclass(frozen=True)
class Check:
    """One line of the table. todo: what to do where it is not ok. figures: for --json."""

    name: str
    status: str
    found: str
    todo: str = ""
    figures: dict[str, float | int | str] = field(default_factory=dict)


# ---- Python and packages ------------------------------------------------------------------------


def check_python() -> Check:
    found = platform.python_version()
    oldest, newest = OLDEST_TESTED["python"], NEWEST_PYTHON_TESTED
    said = f"{found}, tested with {oldest} to {newest}"
    if series(found) < series(oldest):
        return Check("Python", FAILED, said, f"install Python {oldest} or newer")
    if series(found) > series(newest):
        return Check("Python", WARNING, said, "run the tests here: python -m pytest")
    return Check("Python", OK, said)


def check_packages() -> Iterator[Check]:
    """Every package that requirements.txt pins."""
    for name, pinned in pins().items():
        oldest = OLDEST_TESTED.get(name, pinned)
        tested = pinned if oldest == pinned else f"{oldest} to {pinned}"
        try:
            found = version(name)
        except PackageNotFoundError:
            needed = NEEDED_ONLY_BY.get(name)
            yield Check(
                name,
                WARNING if needed else FAILED,
                f"not installed; only {needed} need it" if needed else "not installed",
                f"pip install {name}=={pinned}",
            )
            continue
        said = f"{found}, tested with {tested}"
        if series(oldest) <= series(found) <= series(pinned):
            yield Check(name, OK, said)
        else:
            todo = f"if anything goes wrong, pip install {name}=={pinned}"
            yield Check(name, WARNING, said, todo)


def pins() -> dict[str, str]:
    """Package → version, of requirements.txt."""
    text = (Path(__file__).parent / "requirements.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.M))


def series(text: str) -> tuple[int, ...]:
    """`2.13.1+cpu` → (2, 13): what is tested of a version counts for its corrections too."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def check_imports() -> Iterator[Check]:
    """FlexAttention and the modules of this project that hold on to the insides of libraries."""
    # A broken installation raises what it likes.
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: F401
    except Exception as error:
        todo = f"pip install torch=={pins()['torch']}"
        yield Check("FlexAttention", FAILED, f"cannot be imported: {one_line(error)}", todo)
        return
    yield Check("FlexAttention", OK, "can be imported")
    try:
        pass
    except Exception as error:
        said = f"transformers' attention interface cannot be used: {one_line(error)}"
        yield Check("attention", FAILED, said, "pip install -r requirements.txt")
        return
    yield Check("attention", OK, "transformers' attention interface takes ours")


def check_spacy_model() -> Check:
    from self_ensemble.evaluation.lemmatizer import PREFERRED_MODEL

    if find_spec(PREFERRED_MODEL):
        return Check("spaCy model", OK, f"{PREFERRED_MODEL} is installed")
    if find_spec("spacy_lookups_data"):
        said = f"no {PREFERRED_MODEL}: lemmas come from spaCy's lookup table"
        return Check("spaCy model", OK, said)
    return Check(
        "spaCy model",
        WARNING,
        f"neither {PREFERRED_MODEL} nor a lookup table; only {LEMMAS} need one",
        f"python -m spacy download {PREFERRED_MODEL}, or pip install spacy-lookups-data",
    )


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


# ---- the machine --------------------------------------------------------------------------------


def check_devices() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            yield Check("GPU", OK, "none: everything runs on the CPU, in float32")
            return
        built = torch.version.cuda or torch.version.hip
        yield Check(
            "GPU",
            WARNING,
            f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it",
            "look at nvidia-smi: the driver is too old for this torch, or CUDA_VISIBLE_DEVICES "
            "hides the GPUs"
            if built
            else "install a torch that is built for CUDA (pytorch.org, get started)",
        )
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported()
        said = (
            f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, "
            f"{'bfloat16' if bf16 else 'no bfloat16: weights load in float16'}"
        )
        short = free < LITTLE_MEMORY
        todo = "see nvidia-smi for who holds its memory, or choose --device cuda:N" if short else ""
        figures = {"free_bytes": free, "total_bytes": total, "bf16": bf16}
        yield Check(f"cuda:{index}", WARNING if short else OK, said, todo, figures)


def check_memory() -> Check:
    free = available_memory()
    if free is None:
        return Check(
            "memory", WARNING, "this system does not say how much is free", "look yourself"
        )
    short = free < LITTLE_MEMORY
    return Check(
        "memory",
        WARNING if short else OK,
        f"{free / GIB:.1f} GiB available",
        "the demo takes about 1 GiB, a model twice its weights while it loads" if short else "",
        {"available_bytes": free},
    )


def check_disk() -> Iterator[Check]:
    yield room("results folder", Path("results"), LITTLE_ROOM, "use --output_dir", FAILED)
    if find_spec("huggingface_hub"):  # else transformers is missing too, which is told
        from self_ensemble.system.hub_errors import cache_folder

        cache = Path(cache_folder())
        yield room("model cache", cache, LITTLE_CACHE, "set HF_HOME to a larger disk", WARNING)


def room(name: str, folder: Path, little: int, elsewhere: str, unwritable: str) -> Check:
    """How much is free where the folder is, or will be made.

    unwritable: the status where nothing can be written there.
    """
    there = nearest_existing(folder.absolute())
    free = shutil.disk_usage(there).free
    said = f"{free / GIB:.1f} GiB free in {folder}"
    figures = {"free_bytes": free, "folder": str(folder)}
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Check(name, unwritable, f"{there} cannot be written", elsewhere, figures)
    short = free < little
    todo = f"make room, or {elsewhere}" if short else ""
    return Check(name, WARNING if short else OK, said, todo, figures)


# ---- the hub ------------------------------------------------------------------------------------


def check_hub() -> Iterator[Check]:
    """Whether models can be fetched. Says whether there is a token, never what it is."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Check("hub", OK, "HF_HUB_OFFLINE is set: only files that are here already are used")
        return
    given = os.environ.get("HF_ENDPOINT") or HUB
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", given):
        yield Check("hub", WARNING, "HF_ENDPOINT is no address", f"write it like {HUB}")
        return
    named = without_login(given)
    problem = unreachable(named)
    if problem:
        yield Check(
            "hub",
            WARNING,
            f"{named} cannot be reached ({problem})",
            "the demo needs no hub; for others set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 "
            "where the files are here already",
        )
    else:
        yield Check("hub", OK, f"{named} answers")
    if not find_spec("huggingface_hub"):
        return
    from self_ensemble.system.hub_errors import token_file

    if os.environ.get("HF_TOKEN"):
        yield Check("hub token", OK, "HF_TOKEN is set")
    elif Path(token_file()).is_file():
        yield Check("hub token", OK, f"there is one in {token_file()}")
    else:
        yield Check(
            "hub token",
            OK,
            "none: models behind a licence (Llama, Gemma) need HF_TOKEN, others do not",
        )


def without_login(url: str) -> str:
    """A URL may carry a name and a password; these are shown to nobody."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def unreachable(endpoint: str) -> str:
    """Why the hub does not answer; empty if it does. Takes `HUB_SECONDS` at most."""
    reasons = [f"no answer within {HUB_SECONDS} s"]

    def ask():
        try:
            with urlopen(f"{endpoint.rstrip('/')}/api/models?limit=1", timeout=HUB_SECONDS):
                reasons.append("")
        except HTTPError as error:  # it answers, and may want a login for this
            reasons.append(f"HTTP status {error.code}" if error.code >= 500 else "")
        except (OSError, ValueError, HTTPException) as error:
            reasons.append(one_line(getattr(error, "reason", error)))

    # Looking up a name may take longer than any timeout of the connection's.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return reasons[-1]


def check_demo() -> Check:
    weights = DEMO_MODEL / "model.safetensors"
    for path in (weights, DEMO_QUESTIONS):
        if not path.is_file():
            return Check("demo", FAILED, f"{path} is missing", "clone the project again")
    if weights.stat().st_size < SMALLEST_DEMO:
        todo = "clone the project again, whole"
        return Check("demo", FAILED, f"{weights} holds no weights", todo)
    return Check("demo", OK, "its model and its questions are there")


# ---- FlexAttention ------------------------------------------------------------------------------


def check_flex_attention() -> Iterator[Check]:
    """The segment mask through compiled FlexAttention, on the CPU and on every GPU."""
    import torch

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        name = f"flex on {device}"
        if device == "cpu":
            say("compiling FlexAttention for the CPU: half a minute, once")
        try:
            tried = try_flex(torch.device(device))
        except UserError as error:
            todo = (
                "install a C++ compiler (g++); the CPU's default is sdpa, which needs none"
                if device == "cpu"
                else "update the driver and torch; --attention sdpa runs without FlexAttention"
            )
            yield Check(name, FAILED, f"does not run: {error}", todo)
            continue
        right = tried["difference"] <= tried["tolerance"]
        yield Check(
            name,
            OK if right else FAILED,
            f"{tried['dtype']}, differs from the dense oracle by {tried['difference']:.1e} "
            f"(rounding: up to {tried['tolerance']:.1e}); first run {tried['first_seconds']:.1f} "
            f"s, then {tried['seconds'] * 1000:.1f} ms",
            "" if right else "use --attention sdpa, and report it with the versions above",
            tried,
        )


def try_flex(device, *, compiled: bool = True) -> dict[str, float | str]:
    """The packed segment mask as the engine uses it, against softmax in float64.

    The oracle knows only which token is whose. What may be off: probabilities and result are
    rounded to the dtype, each by half of ``eps`` of the largest value; in float32 sums over a
    head's 64 products have room for as many roundings.

    Raises:
        UserError: it does not run on this device.
    """
    import torch

    from self_ensemble.attention.kv_state import EncodeState
    from self_ensemble.attention.scoring import KeyValues, Scoring
    from self_ensemble.generation.legacy import pad_to_bucket
    from self_ensemble.models.loading import choose_dtype

    dtype = choose_dtype("auto", device)
    P, J, D = TRIED_PREFIX, TRIED_KV_HEADS, TRIED_SIZE
    lengths = torch.tensor(TRIED_LENGTHS)
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(P, P + length) for length in lengths])
    ids, owner, positions = pad_to_bucket(torch.zeros_like(owner), owner, positions, device)
    T, real = len(ids), int(lengths.sum())
    generator = torch.Generator().manual_seed(0)
    query, key, value, prefix_key, prefix_value = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((1, TRIED_HEADS, T, D), (1, J, T, D), (1, J, T, D), (J, P, D), (J, P, D))
    )
    seconds = []
    try:
        prefix = {0: KeyValues(prefix_key.to(device), prefix_value.to(device))}
        plan = EncodeState(
            TRIED_LENGTHS,
            owner.to(device),
            positions.to(device),
            prefix,
            backend="flex",
            compiled=compiled,
        )
        inputs = [tensor.to(device) for tensor in (query, key, value)]
        for _ in range(2):
            begun = time.monotonic()
            with torch.inference_mode():
                got = plan.attend(0, *inputs, Scoring(D**-0.5))[0, :, :real].double().cpu()
            seconds.append(time.monotonic() - begun)
    except Exception as error:  # the compiler's own faults come in every kind
        raise UserError(one_line(error)) from error

    group = TRIED_HEADS // J
    keys, values = (
        torch.cat([before[None], own], dim=2)[0].double().repeat_interleave(group, dim=0)
        for before, own in ((prefix_key, key), (prefix_value, value))
    )
    visible = torch.zeros(real, P + T, dtype=torch.bool)
    for q in range(real):
        for kv in range(P + q + 1):
            visible[q, kv] = kv < P or owner[kv - P] == owner[q]
    scores = query[0, :, :real].double() @ keys.transpose(1, 2) * D**-0.5
    wanted = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ values
    room = 64 if dtype == torch.float32 else 1
    difference = (got - wanted).abs().max().item()
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "difference": difference,
        "tolerance": room * torch.finfo(dtype).eps * values.abs().max().item(),
        "first_seconds": seconds[0],
        "seconds": seconds[1],
    }


# ---- the certificate ----------------------------------------------------------------------------


def check_model(name: str, revision: str | None) -> tuple[list[Check], list]:
    """Load a model as the main job does; its certificates, plain and with its chat template."""
    from self_ensemble.data import chat_prompt_template, choose_template, load_dataset
    from self_ensemble.diagnostics.certificate import certify
    from self_ensemble.generation.legacy import loaded_engine
    from self_ensemble.models.loading import find_model

    checks, certificates = [], []
    try:
        dataset = load_dataset("demo", max_samples=ASKED)
        questions = [record.paraphrases[:WORDINGS] for record in dataset.records]
        plain = choose_template(
            dataset, instruction=None, few_shot_file=None, num_few_shot=FEW_SHOT
        )
        source = find_model(name, revision=revision, device="auto", dtype="auto")
        with loaded_engine(source, attention="auto", recorded=False) as engine:
            positions = source.default_positions
            certificates.append(certify(engine, plain, questions, positions=positions))
            if getattr(engine.tokenizer, "chat_template", None):
                try:
                    chat = chat_prompt_template(engine.tokenizer, plain)
                except UserError as error:
                    todo = "leave --chat_template out with this model"
                    checks.append(Check("chat template", WARNING, str(error), todo))
                else:
                    certificates.append(
                        certify(engine, chat, questions, positions=positions, chat=True)
                    )
    except UserError as error:
        checks.append(Check("model", FAILED, str(error), "choose another model or mend this one"))
        return checks, certificates
    said = f"{name} runs on {source.device}"
    checks.insert(0, Check("model", OK, said, "", {"fingerprint": source.fingerprint}))
    for each in certificates:
        broken = each.broken
        # Without --chat_template the main job asks plain prompts.
        status, todo = (
            (FAILED, "do not use it: see the certificate")
            if each.template == "plain"
            else (WARNING, "leave --chat_template out: see the certificate")
        )
        said = f"{len(each.items) - len(broken)} of {len(each.items)} promises kept"
        label = f"{each.template} prompt"
        if broken:
            checks.append(Check(label, status, f"{said}, not {', '.join(broken)}", todo))
        else:
            checks.append(Check(label, OK, said))
    return checks, certificates


# ---- what is shown ------------------------------------------------------------------------------


def table(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Aligned lines of (name, status, sentence, what to do)."""
    rows = list(rows)
    names = max(len(name) for name, *_ in rows)
    states = max(len(status) for _, status, *_ in rows)
    width = max(72, min(shutil.get_terminal_size((100, 24)).columns, 120))
    indent = " " * (names + states + 4)
    lines = []
    for name, status, sentence, todo in rows:
        begin = f"{name:<{names}}  {status:<{states}}  "
        lines += textwrap.wrap(
            f"{begin}{sentence}", width, subsequent_indent=indent, break_on_hyphens=False
        )
        if todo:
            lines += textwrap.wrap(
                f"to do: {todo}",
                width,
                initial_indent=indent,
                subsequent_indent=indent + " " * 7,
                break_on_hyphens=False,
            )
    return lines


def certificate_lines(certificate, verbose: bool) -> Iterator[str]:
    yield (
        f"Certificate, {certificate.template} prompt ({certificate.backend}, {certificate.dtype}, "
        f"positions {certificate.positions})"
    )
    splits = certificate.splits
    for number, split in enumerate(splits if verbose else splits[:1], start=1):
        parts = [
            ("prefix", split.prefix),
            *((f"segment {i}", tokens) for i, tokens in enumerate(split.segments, start=1)),
            ("tail", split.tail),
        ]
        yield f"  question {number} of {len(splits)} is cut so:"
        for name, tokens in parts:
            yield f"    {name:<10} {len(tokens):>4} tokens  {shown_tokens(tokens, verbose)}"
        if split.straddling:
            tokens = shown_tokens(split.straddling, verbose)
            yield f"    over a border, and so the segment's: {tokens}"
    rows = ((item.name, item.status, item.reason, "") for item in certificate.items)
    yield from (f"  {line}" for line in table(rows))


def shown_tokens(tokens: Sequence[str], verbose: bool) -> str:
    """Of many tokens the two ends."""
    texts = [quoted(token) for token in tokens]
    if not verbose and len(texts) > SHOWN_TOKENS:
        half = SHOWN_TOKENS // 2
        texts = [*texts[:half], "...", *texts[-half:]]
    return " ".join(texts)


def all_checks(args: Namespace) -> tuple[list[Check], list]:
    """Every check that the command line asks for, and the certificates."""
    checks = [check_python(), *check_packages()]
    checks += check_imports()
    usable = all(check.status != FAILED for check in checks)
    if usable:
        checks += check_devices()
    checks += [check_spacy_model(), check_memory(), *check_disk(), *check_hub(), check_demo()]
    if not usable:
        return checks, []
    from self_ensemble.experiment.run import set_up_logging

    set_up_logging(args.verbose)
    if args.test_flex_attention:
        checks += check_flex_attention()
    if not args.model:
        return checks, []
    found, certificates = check_model(args.model, args.revision)
    return [*checks, *found], certificates


def main(args: Namespace) -> None:
    if args.model:
        resolve_model(args.model)  # a name that can be nothing is a mistake on the command line
    checks, certificates = all_checks(args)
    failed = [check.name for check in checks if check.status == FAILED]
    if args.json:
        report = {
            "verdict": FAILED if failed else OK,
            "failed": failed,
            "checks": [asdict(check) for check in checks],
            "certificates": [each.report() for each in certificates],
        }
        print(json.dumps(report, indent=2))
    else:
        lines = table((c.name, c.status, c.found, c.todo) for c in checks)
        for each in certificates:
            lines += ["", *certificate_lines(each, args.verbose)]
        verdict = f"would not run: {', '.join(failed)}" if failed else "would run"
        print("\n".join([*lines, "", f"The main job {verdict}."]))
    if failed:
        sys.exit(1)


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--test_flex_attention",
        action="store_true",
        help="compile FlexAttention and run the segment mask on every device; what goes wrong is a "
        "failure, though --attention auto would do without",
    )
    parser.add_argument(
        "--model", help="alias of constants.py, hub id, or folder: load it and give its certificate"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--verbose", action="store_true", help="show all tokens of all questions, and more remarks"
    )
    args = parser.parse_args(argv)
    if args.revision is not None and args.model is None:
        parser.error("--revision: of which --model?")
    return args


if __name__ == "__main__":
    run(main, parse_args())
