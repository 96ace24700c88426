"""The environment's checks, what is printed of them, and the exit status."""

import ast
import copy
import json
import math
import shutil
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from small import run_script
from transformers import LlamaForCausalLM

import validate_flexattention_env as validate
from self_ensemble.attention import backends, kv_state
from self_ensemble.attention.kv_state import DecodeState, EncodeState
from self_ensemble.diagnostics import environment, flex_check, hub_check, versions
from self_ensemble.diagnostics.checks import FAILED, OK, WARNING
from self_ensemble.diagnostics.config import CertificateConfig
from self_ensemble.diagnostics.environment_report import shown_tokens
from self_ensemble.diagnostics.model_check import check_model
from self_ensemble.models.memory import GIB, available_memory

ROOT = Path(__file__).parents[2]
# What flex_attention_generate.py imports, whatever it is asked for.
MAIN_JOB = "flex_attention_generate dataset constants"
MAIN_ROOMS = "attention cli data experiment generation methods models system"
IMPORTED_AS = {"spacy-lookups-data": "spacy_lookups_data"}

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No hub is asked, results would go to an empty folder, and lines are 100 characters."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """The small model with wide heads: as many keys as a value is wide are told apart at a time."""
    config = copy.deepcopy(small.model.config)
    config.head_dim = 32
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("wide") / "wide"
    LlamaForCausalLM(config).save_pretrained(path)
    small.tokenizer.save_pretrained(path)
    return path


def run(capsys, *argv):
    """Exit status, stdout and stderr of the script."""
    capsys.readouterr()
    code = run_script(validate, *argv)
    return code, *capsys.readouterr()


# ---- the whole script -----------------------------------------------------------------------


def test_a_model_that_works(folder, capsys):
    code, out, err = run(capsys, "--model", folder, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["verdict"], report["failed"]) == (OK, [])
    assert all(check["status"] != FAILED for check in report["checks"])
    [found] = report["certificates"]  # it has no chat template
    assert (found["template"], found["passed"], found["bos"]) == ("plain", True, 1)
    assert (found["backend"], found["dtype"], found["positions"]) == ("sdpa", "float32", "exact")
    config = CertificateConfig(model="small")
    assert [len(cut["segments"]) for cut in found["cuts"]] == [config.wordings] * config.questions
    assert {item["status"] for item in found["items"]} == {"passed"}


def test_what_is_printed(folder, capsys):
    code, out, err = run(capsys, "--model", folder)
    assert (code, err) == (0, "")
    checks, shown, verdict = out.split("\n\n")
    assert verdict == "The main job would run.\n"
    names = [line.split("  ")[0] for line in checks.splitlines() if not line.startswith(" ")]
    assert names[:3] == ["Python", "torch", "transformers"]
    assert names[-2:] == ["model", "plain prompt"]
    starts = {
        line.index(word) for line in checks.splitlines() for word in (" ok ",) if word in line
    }
    assert len(starts) == 1, "statuses stand under each other"
    assert all(len(line) <= 100 for line in checks.splitlines())
    assert "segment 0 " in shown and "segment 4 " in shown and "segment 5" not in shown
    assert "question 1 of 3" in shown and "question 2 of" not in shown
    assert " ... " in shown
    assert "packed_equals_separate  passed  relative" in shown

    _, out, _ = run(capsys, "--model", folder, "--verbose")
    assert "question 3 of 3" in out and " ... " not in out


def test_the_certificate_is_of_the_fusion_asked_for(folder, capsys):
    """As many wordings are asked as there are weights."""
    flags = ("--fusion", "joint", "--weights", "3,0,1")
    code, out, _ = run(capsys, "--model", folder, *flags, "--json")
    [found] = json.loads(out)["certificates"]
    assert (code, found["positions"], found["passed"]) == (0, "left", True)
    assert [len(cut["segments"]) for cut in found["cuts"]] == [3, 3, 3]
    reasons = {item["name"]: item["reason"] for item in found["items"]}
    assert "in the shares that the fusion gives them" in reasons["fused_sees_all"]
    assert run(capsys, "--model", folder, "--weights", "1")[0] == 1
    assert run(capsys, "--fusion", "joint")[0] == 2


def test_a_broken_mask_fails_the_run(folder, capsys, monkeypatch):
    """What the certificate finds decides the exit status."""
    intact = DecodeState._build_masks

    def blind(self, window, group):
        found = intact(self, window, group)
        if self.segment_mask.shape[1] > 1:
            found.segments[:, :, 1] = False
        return found

    monkeypatch.setattr(DecodeState, "_build_masks", blind)
    code, out, _ = run(capsys, "--model", folder)
    assert code == 1
    wrong = "fused_sees_all, first_token_fused, fused_equals_alone"
    assert f"8 of 11 promises kept, not {wrong}" in " ".join(out.split())
    assert "of the fused tokens does not attend to" in out
    assert out.endswith("The main job would not run: plain prompt.\n")


def chat_folder(folder, there, template):
    shutil.copytree(folder, there)
    file = there / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return there


@pytest.mark.parametrize(
    "template, said",
    [
        ("{{ bos_token }}[{{ messages[0].content }}] x:", None),
        ("{{ messages[0].content | upper }}x", "alters the text"),
        ("{{ bos_token * 2 }}{{ messages[0].content }} x:", "not bos"),
    ],
    ids=["good", "cannot be used", "two BOS"],
)
def test_a_chat_template(folder, tmp_path, capsys, template, said):
    folder = chat_folder(folder, tmp_path / "chat", template)
    found, out, _ = run(capsys, "--model", folder, "--json")
    assert found == 0
    report = json.loads(out)
    assert (report["verdict"], report["failed"]) == (OK, [])
    if said is None:
        assert [each["template"] for each in report["certificates"]] == ["plain", "chat"]
        return
    [check] = [c for c in report["checks"] if c["name"] in ("chat template", "chat prompt")]
    assert check["status"] == WARNING  # plain prompts would run
    assert said in check["found"] and "--chat_template" in check["todo"]


def test_a_model_that_cannot_be_loaded(tmp_path, capsys):
    code, out, _ = run(capsys, "--model", tmp_path, "--json")
    [check] = [c for c in json.loads(out)["checks"] if c["name"] == "model"]
    assert (code, check["status"]) == (1, FAILED)
    assert (
        check["found"] == f"--model: the folder {tmp_path} holds no config.json and no .gguf file"
    )


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--model", "nonesuch"], "--model: 'nonesuch' is no folder"),
        (["--revision", "main"], "--revision: of which --model?"),
        (["--modle", "demo"], "unknown flag '--modle'"),
    ],
)
def test_mistakes_on_the_command_line(argv, said, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        validate.run(validate.main, validate.parse_args(argv))
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith(f"error: {said}") and err.count("\n") == 1


def test_flags_in_both_spellings():
    for flag in ("--test-flex-attention", "--test_flex_attention"):
        assert validate.parse_args([flag]).test_flex_attention


# ---- Python and packages --------------------------------------------------------------------


def pin_of(package):
    [tested] = [each for each in versions.version_ranges() if each.package == package]
    return tested.newest


def package_checks(monkeypatch, **others):
    """The checks where these packages are of other versions; None: not there."""

    def version(name):
        found = others.get(name.replace("-", "_"), pin_of(name))
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(environment, "version", version)
    return {check.name: check for check in environment.check_packages()}


def test_every_package_of_requirements_txt_is_looked_at(monkeypatch):
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.strip()]
    found = package_checks(monkeypatch)
    assert list(found) == [line.split("==")[0] for line in lines]
    assert {check.status for check in found.values()} == {OK}


@pytest.mark.parametrize(
    "torch_version, status",
    [
        ("2.10.1", WARNING),
        ("2.11.0", OK),
        ("2.11.7+cu129", OK),
        ("2.12.0", OK),
        ("2.13.9", OK),
        ("2.14.0", WARNING),
        ("10.0", WARNING),
        (None, FAILED),
    ],
)
def test_versions_against_the_tested_range(monkeypatch, torch_version, status):
    check = package_checks(monkeypatch, torch=torch_version)["torch"]
    assert check.status == status
    pin = pin_of("torch")
    assert check.todo == "" if status == OK else f"pip install torch=={pin}" in check.todo
    if torch_version:
        assert check.found == f"{torch_version}, tested with 2.11.0 to {pin}"


@pytest.mark.parametrize("name", ["spacy", "spacy-lookups-data", "matplotlib", "scipy"])
def test_what_only_some_scripts_need(monkeypatch, name):
    check = package_checks(monkeypatch, **{name.replace("-", "_"): None})[name]
    assert check.status == WARNING
    assert ".py" in check.found and f"pip install {name}==" in check.todo


def test_only_those_are_called_optional_that_are():
    """No module of the main job imports them when it is imported itself."""
    optional = {IMPORTED_AS.get(name, name) for name in environment.NEEDED_ONLY_BY}
    files = [ROOT / f"{script}.py" for script in MAIN_JOB.split()]
    for room in MAIN_ROOMS.split():
        files += (ROOT / "self_ensemble" / room).glob("*.py")
    for module in files:
        for node in ast.parse(module.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", ())]
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not optional & {name.split(".")[0] for name in names}, module


@pytest.mark.parametrize(
    "python, status",
    [("3.10.4", FAILED), ("3.11.0", OK), ("3.12.9", OK), ("3.13.0", WARNING), ("3.9", FAILED)],
)
def test_python(monkeypatch, python, status):
    monkeypatch.setattr(environment.platform, "python_version", lambda: python)
    check = environment.check_python()
    assert check.status == status
    assert python in check.found and bool(check.todo) == (status != OK)


def test_without_torch_nothing_that_needs_it_is_tried(monkeypatch, capsys, folder):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "torch.nn.attention.flex_attention", None)
    code, out, _ = run(capsys, "--model", folder, "--test-flex-attention", "--json")
    report = json.loads(out)
    assert (code, report["failed"], report["certificates"]) == (1, ["FlexAttention"], [])
    assert "model" not in {check["name"] for check in report["checks"]}


@pytest.mark.parametrize(
    "there, status, said",
    [
        ({"en_core_web_lg", "spacy_lookups_data"}, OK, "en_core_web_lg is installed"),
        ({"spacy_lookups_data"}, OK, "lookup table"),
        (set(), WARNING, "score.py --lemmas recompute"),
    ],
)
def test_spacy_model(monkeypatch, there, status, said):
    monkeypatch.setattr(environment, "find_spec", lambda name: name in there or None)
    check = environment.check_spacy_model()
    assert check.status == status and said in check.found


# ---- the machine ----------------------------------------------------------------------------


def devices(monkeypatch, *, available, driver=False, free=()):
    """The checks on a machine with so many bytes free on each of its GPUs of 80 GiB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free[index], 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "device", lambda index: threading.Lock())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(environment.shutil, "which", lambda name: name if driver else None)
    return list(environment.check_devices())


def test_devices(monkeypatch):
    [none] = devices(monkeypatch, available=False)
    assert (none.status, none.name) == (OK, "GPU") and "CPU" in none.found
    [hidden] = devices(monkeypatch, available=False, driver=True)
    assert hidden.status == WARNING and hidden.todo
    roomy, full = devices(monkeypatch, available=True, free=(60 * GIB, GIB))
    assert (roomy.name, roomy.status) == ("cuda:0", OK)
    assert roomy.found == "GPU 0, 60.0 of 80.0 GiB free, bfloat16"
    assert (full.name, full.status) == ("cuda:1", WARNING) and "--device" in full.todo
    assert full.figures == {"free_bytes": 2**30, "total_bytes": 80 * 2**30, "bf16": True}


@pytest.mark.parametrize("free, status", [(None, WARNING), (2**30, WARNING), (2**33, OK)])
def test_memory(monkeypatch, free, status):
    monkeypatch.setattr(environment, "available_memory", lambda: free)
    assert environment.check_memory().status == status


def test_memory_of_this_machine():
    assert 2**27 < available_memory() < 2**45


def disk(monkeypatch, tmp_path, free=2**40):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    usage = lambda path: type("usage", (), {"free": free})  # noqa: E731
    monkeypatch.setattr(environment.shutil, "disk_usage", usage)
    return list(environment.check_disk())


def test_disk(monkeypatch, tmp_path):
    results, cache = disk(monkeypatch, tmp_path)
    assert (results.status, cache.status) == (OK, OK)
    assert cache.found == f"1024.0 GiB free in {tmp_path / 'hf' / 'hub'}"
    results, cache = disk(monkeypatch, tmp_path, free=2**20)
    assert (results.status, cache.status) == (WARNING, WARNING)
    assert "--output_dir" in results.todo and "HF_HOME" in cache.todo
    assert not list(tmp_path.iterdir()), "nothing is made"


def test_a_results_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "results").write_text("a file")
    results, _ = disk(monkeypatch, tmp_path)
    assert results.status == FAILED and "cannot be written" in results.found


def test_the_demo(monkeypatch, tmp_path):
    assert environment.check_demo().status == OK
    monkeypatch.setattr(environment, "DEMO_MODEL", tmp_path)
    assert environment.check_demo().status == FAILED
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    assert environment.check_demo().found.endswith("holds no weights")


# ---- the hub --------------------------------------------------------------------------------


@pytest.fixture
def hub():
    """A hub on loopback: set ``status``; ``asked`` holds paths and headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append((self.path, str(self.headers)))
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.asked = 200, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def hub_checks(monkeypatch, tmp_path, endpoint, **environment):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    settings = {"HF_ENDPOINT": endpoint, "no_proxy": "127.0.0.1"}
    for name, value in (settings | environment).items():
        monkeypatch.setenv(name, value)
    return list(hub_check.check_hub())


@pytest.mark.parametrize(
    "status, expected", [(200, OK), (401, OK), (404, OK), (500, WARNING), (503, WARNING)]
)
def test_a_hub_that_answers(hub, monkeypatch, tmp_path, status, expected):
    hub.status = status
    address = f"http://127.0.0.1:{hub.server_port}"
    check, token = hub_checks(monkeypatch, tmp_path, address)
    assert check.status == expected
    assert address in check.found and (expected == OK or str(status) in check.found)
    assert token.found.startswith("none")
    assert len(hub.asked) == 1


def test_no_secret_is_shown_or_sent(hub, monkeypatch, tmp_path, capsys):
    endpoint = f"http://me:hunter2@127.0.0.1:{hub.server_port}"
    checks = hub_checks(monkeypatch, tmp_path, endpoint, HF_TOKEN="hf_secret")
    assert [check.status for check in checks] == [OK, OK]
    assert checks[1].found == "HF_TOKEN is set"
    for argv in ([], ["--json"], ["--verbose"]):
        shown = "".join(map(str, run(capsys, *argv)[1:]))
        assert "127.0.0.1" in shown and "HF_TOKEN is set" in shown
        assert "hunter2" not in shown and "hf_secret" not in shown
    assert "hf_secret" not in str(hub.asked) and "hunter2" not in str(hub.asked)


def test_a_token_in_its_file(hub, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("hf_secret")
    _, token = hub_checks(monkeypatch, tmp_path, f"http://127.0.0.1:{hub.server_port}")
    assert token.found == f"there is one in {tmp_path / 'token'}"


def test_without_the_hubs_client_its_places_are_not_told(hub, monkeypatch, tmp_path):
    for module in (environment, hub_check):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    [check] = hub_checks(monkeypatch, tmp_path, f"http://127.0.0.1:{hub.server_port}")
    assert (check.name, check.status) == ("hub", OK)
    assert [each.name for each in environment.check_disk()] == ["results folder"]


def test_a_newline_and_its_escape_look_different():
    shown = shown_tokens(["\n", "\\n", " it's", "\u200b"], verbose=False)
    assert shown == "'\\n' '\\\\n' ' it's' '\\u200b'"


@pytest.mark.parametrize("listens_to_a_timeout", [True, False])
def test_a_hub_that_does_not_answer(monkeypatch, tmp_path, listens_to_a_timeout):
    """Looking up a name does not."""

    def slow(address, timeout):
        time.sleep(timeout if listens_to_a_timeout else 1)
        raise TimeoutError("timed out")

    monkeypatch.setattr(hub_check, "urlopen", slow)
    monkeypatch.setattr(hub_check, "HUB_SECONDS", 0.1)
    begun = time.monotonic()
    check, _ = hub_checks(monkeypatch, tmp_path, "http://127.0.0.1:9")
    assert check.status == WARNING and "HF_ENDPOINT" in check.todo
    assert time.monotonic() - begun < 0.9


def test_a_hub_that_is_not_there(monkeypatch, tmp_path):
    check, _ = hub_checks(monkeypatch, tmp_path, "http://127.0.0.1:9")
    assert check.status == WARNING and "refused" in check.found


@pytest.mark.parametrize("endpoint", ["ftp://me:hunter2@hub", "hub", "http://", "http://a b"])
def test_an_endpoint_that_is_no_address(monkeypatch, tmp_path, endpoint):
    [check] = hub_checks(monkeypatch, tmp_path, endpoint)
    assert check.status == WARNING and check.found == "HF_ENDPOINT is no address"


@pytest.mark.parametrize("value, offline", [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline(hub, monkeypatch, tmp_path, value, offline):
    address = f"http://127.0.0.1:{hub.server_port}"
    checks = hub_checks(monkeypatch, tmp_path, address, HF_HUB_OFFLINE=value)
    assert (len(checks) == 1) == offline == ("HF_HUB_OFFLINE" in checks[0].found)
    assert len(hub.asked) == (not offline)


# ---- FlexAttention --------------------------------------------------------------------------


@pytest.fixture
def eager_flex(monkeypatch):
    """FlexAttention uncompiled, untraced and on fewer tokens."""
    monkeypatch.setattr("self_ensemble.generation.batching.FLEX_BUCKET", 64)
    untraced = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    monkeypatch.setattr(untraced, True, raising=False)
    eager = backends._eager_flex()
    monkeypatch.setattr(backends, "compiled_flex_attention", lambda device: eager)


def test_flex_attention_equals_the_oracle(eager_flex, capsys):
    code, out, err = run(capsys, "--test-flex-attention", "--json")
    [check] = [c for c in json.loads(out)["checks"] if c["name"].startswith("flex")]
    assert (code, check["name"], check["status"]) == (0, "flex on cpu", OK)
    assert 0 < check["figures"]["difference"] < 1e-5
    assert "compiling FlexAttention for the CPU" in err


def test_half_precision_is_within_its_rounding(eager_flex, monkeypatch):
    for dtype in (torch.bfloat16, torch.float16):
        monkeypatch.setattr(flex_check, "choose_dtype", lambda name, device, dtype=dtype: dtype)
        trial = flex_check.try_flex(torch.device("cpu"))
        assert trial.right and trial.tolerance < 0.05
        assert trial.dtype == str(dtype).removeprefix("torch.")


def breaking_the_mask(monkeypatch, broken):
    intact = kv_state.packed_segment_mask

    def mask(*given):
        mask_mod = intact(*given)
        return lambda b, h, q, kv: broken(mask_mod(b, h, q, kv), q, kv)

    monkeypatch.setattr(kv_state, "packed_segment_mask", mask)


@pytest.mark.parametrize(
    "broken",
    [
        lambda seen, q, kv: seen | ((q == 20) & (kv == flex_check.PREFIX)),
        lambda seen, q, kv: seen & ((q != 20) | (kv != 3)),
        lambda seen, q, kv: seen & (q != 20),
        lambda seen, q, kv: seen | ((q == 20) & (kv == flex_check.PREFIX + 21)),
        lambda seen, q, kv: seen | ((q == 20) & (kv == flex_check.PREFIX + 60)),
    ],
    ids=["other segment", "prefix hidden", "empty row", "looks ahead", "padding"],
)
def test_one_wrong_cell_fails(eager_flex, monkeypatch, capsys, broken):
    breaking_the_mask(monkeypatch, broken)
    [check] = flex_check.check_flex_attention()
    assert check.status == FAILED
    assert check.figures["difference"] > 1e-3 and "--attention sdpa" in check.todo


def test_flex_attention_that_does_not_compile(monkeypatch, capsys):
    def fails(device):
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(backends, "compiled_flex_attention", fails)
    code, out, _ = run(capsys, "--test-flex-attention")
    assert code == 1
    assert "does not run: no C++ compiler found" in out and "g++" in out


@pytest.mark.slow
def test_compiled_flex_attention_on_the_cpu():
    torch._dynamo.reset()
    [check] = flex_check.check_flex_attention()
    assert check.status == OK
    assert 0 < check.figures["difference"] < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_flex_attention_and_the_demos_certificate_on_a_gpu():
    trial = flex_check.try_flex(torch.device("cuda:0"))
    assert trial.right and trial.difference > 0
    checks, [found] = check_model(CertificateConfig(model="demo"))
    assert found.backend == "flex" and found.dtype == "bfloat16"
    assert found.passed, found.items
    assert {check.status for check in checks} == {OK}


def test_figures_of_json_are_numbers(folder, capsys, monkeypatch):
    """What is no number is null in JSON, and fails."""
    intact = EncodeState._padded_mask

    def empty(self, window, device):
        found = intact(self, window, device).clone()
        if self.prefix:
            found[..., 1, :] = False
        return found

    monkeypatch.setattr(EncodeState, "_padded_mask", empty)
    monkeypatch.setattr(
        "self_ensemble.generation.attaching.choose_backend", lambda *_: ("eager", None)
    )
    code, out, _ = run(capsys, "--model", folder, "--json")
    report = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    items = {item["name"]: item for item in report["certificates"][0]["items"]}
    assert code == 1
    assert items["no_empty_row"]["status"] == FAILED
    assert items["packed_equals_separate"] | {"reason": ""} == {
        "name": "packed_equals_separate",
        "status": FAILED,
        "figure": None,
        "reason": "",
    }
    assert math.isfinite(items["no_empty_row"]["figure"])
