"""The command line that the scripts share: flags, types, and how mistakes are told."""

import argparse
import subprocess
import sys
import time
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

from self_ensemble.attention import positions
from self_ensemble.attention.fusion import FUSIONS
from self_ensemble.cli.flags import add_common_arguments
from self_ensemble.cli.parser import Parser, run
from self_ensemble.cli.types import positive_int, weight_list
from self_ensemble.data.extraction import FIRST_LINE, Extraction
from self_ensemble.experiment.config import (
    ExperimentConfig,
    ParaphraseCheckConfig,
    ParaphraseRunConfig,
)
from self_ensemble.generation.config import SamplingConfig
from self_ensemble.methods.attention_fusion import AttentionFusion
from self_ensemble.methods.config import (
    FUSION_NAMES,
    POSITIONS,
    AttentionFusionConfig,
    LogitFusionConfig,
)
from self_ensemble.system.errors import UserError

ROOT = Path(__file__).parents[3]
DEFAULTS = {
    "dataset": "demo",
    "num_paraphrases": None,
    "indexs": None,
    "fewer": "error",
    "max_samples": None,
    "data_dir": None,
    "dataset_revision": None,
    **dict.fromkeys(("split", "group_by", "paraphrase_column", "answer_column", "where")),
    "paraphrase_model": None,
    "num_manual": None,
    "num_auto": None,
    "seed": None,
    "model": "demo",
    "revision": None,
    "device": "auto",
    "dtype": "auto",
    "attention": "auto",
    "instruction": None,
    "few_shot": None,
    "num_few_shot": None,
    "chat_template": False,
    "task": "generate",
    "max_new_tokens": 20,
    "stop": None,
    "extract": FIRST_LINE,
    "choice_norm": "sum",
    "temperature": None,
    "top_p": None,
    "sample_seed": None,
    "batch_size": None,
    **dict.fromkeys(("workers", "ray_address", "gpus_per_worker", "part_rows")),
    "output_dir": Path("results"),
    "overwrite": False,
    "verbose": False,
    "lemmaize": False,
    "spacy_model": None,
}
SCRIPT = """
import sys
from self_ensemble.cli.flags import add_common_arguments
from self_ensemble.cli.parser import Parser, run
from self_ensemble.system.errors import UserError
def main(args):
    {body}
parser = Parser(description="What it does.")
add_common_arguments(parser)
run(main, parser.parse_args())
"""


def make_parser():
    parser = Parser()
    add_common_arguments(parser)
    parser.add_argument("--weights", type=weight_list)
    parser.add_argument("--fusion_tau", type=float, default=0.0)
    # A second name for a shared flag must not bring a second default.
    parser.add_argument(
        "--num_ensemble",
        dest="num_paraphrases",
        type=positive_int,
        default=argparse.SUPPRESS,
    )
    return parser


def parse(*args):
    return vars(make_parser().parse_args(args))


def run_script(*args, body="pass"):
    command = [sys.executable, "-c", SCRIPT.format(body=body), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_defaults():
    assert parse() == DEFAULTS | {"weights": None, "fusion_tau": 0.0}


GIVEN = {
    "dataset": ("own.csv", "own.csv"),
    "num_paraphrases": ("3", 3),
    "indexs": ("2,0,4", (2, 0, 4)),
    "fewer": ("skip", "skip"),
    "max_samples": ("7", 7),
    "data_dir": ("a-b", Path("a-b")),
    "dataset_revision": ("main", "main"),
    "split": ("test", "test"),
    "group_by": ("prompt_id", "prompt_id"),
    "paraphrase_column": ("a-b", "a-b"),
    "answer_column": ("possible_answers", "possible_answers"),
    "where": ("a-b=c_d=e", [("a-b", "c_d=e")]),
    "paraphrase_model": ("llama3.2_3b_it", "llama3.2_3b_it"),
    "num_manual": ("0", 0),
    "num_auto": ("15", 15),
    "seed": ("0", 0),
    "model": ("org/name", "org/name"),
    "revision": ("main", "main"),
    "device": ("cuda:1", "cuda:1"),
    "dtype": ("bfloat16", "bfloat16"),
    "attention": ("sdpa", "sdpa"),
    "instruction": ("Do it - now.", "Do it - now."),
    "few_shot": ("a-b_c.jsonl", Path("a-b_c.jsonl")),
    "num_few_shot": ("0", 0),
    "chat_template": (None, True),
    "task": ("choices", "choices"),
    "max_new_tokens": ("1", 1),
    "stop": (r"a-b\n\x41\u00e9\\n\t\r", ["a-b\nAé\\n\t\r"]),
    "extract": ("after:a-b_c", Extraction("after", "a-b_c")),
    "choice_norm": ("bytes", "bytes"),
    "temperature": ("0.7", 0.7),
    "top_p": ("1", 1.0),
    "sample_seed": ("0", 0),
    "batch_size": ("16", 16),
    "workers": ("auto", "auto"),
    "ray_address": ("host:6379", "host:6379"),
    "gpus_per_worker": ("1", 1),
    "part_rows": ("1000", 1000),
    "output_dir": ("out-1", Path("out-1")),
    "overwrite": (None, True),
    "verbose": (None, True),
    "lemmaize": (None, True),
    "spacy_model": ("lookup", "lookup"),
}


def test_table_holds_every_flag():
    assert GIVEN.keys() == DEFAULTS.keys()


@pytest.mark.parametrize("name", GIVEN)
def test_flag_in_both_spellings(name):
    text, value = GIVEN[name]
    for flag in {f"--{name}", f"--{name.replace('_', '-')}"}:
        ways = [[flag]] if text is None else [[flag, text], [f"{flag}={text}"]]
        for args in ways:
            assert parse(*args)[name] == value, args


@pytest.mark.parametrize(
    "args, name, value",
    [
        (["--weights", "1, 0.5,2e-1"], "weights", (1.0, 0.5, 0.2)),
        (["--fusion-tau", "-0.5"], "fusion_tau", -0.5),
        (["--fusion-tau", "-.5"], "fusion_tau", -0.5),
        (["--num-ensemble", "7"], "num_paraphrases", 7),
        (["--batch-size", "auto"], "batch_size", None),
        (["--indexs", "0"], "indexs", (0,)),
        (["--instruction", "--answer-in one word"], "instruction", "--answer-in one word"),
        (["--instruction=--answer-in"], "instruction", "--answer-in"),
        (["--instruction="], "instruction", ""),
    ],
)
def test_values(args, name, value):
    assert parse(*args)[name] == value


@pytest.mark.parametrize(
    "args, named",
    [
        (["--num_paraphrases", "0"], ["--num_paraphrases", "'0'"]),
        (["--num-paraphrases", "-3"], ["--num_paraphrases", "'-3'"]),
        (["--num_paraphrases", "2.5"], ["'2.5'"]),
        (["--num_paraphrases", "1_0"], ["'1_0'"]),
        (["--num_paraphrases", "٣"], ["'٣'"]),
        (["--num_paraphrases", "9" * 5000], ["9999"]),
        (["--num_paraphrases"], ["--num_paraphrases", "expected one argument"]),
        (["--max_samples", "many"], ["--max_samples", "'many'"]),
        (["--max_new_tokens", ""], ["--max_new_tokens", "''"]),
        (["--num_few_shot", "-1"], ["--num_few_shot", "'-1'"]),
        (["--batch_size", "0"], ["--batch_size", "'0'", "auto"]),
        (["--batch_size", "big"], ["--batch_size", "'big'", "auto"]),
        (["--indexs", "0,x"], ["--indexs", "'0,x'"]),
        (["--indexs", "0,,1"], ["--indexs", "'0,,1'"]),
        (["--indexs", "-1,2"], ["--indexs", "'-1,2'"]),
        (["--indexs", "1,2,1"], ["--indexs", "'1,2,1'", "twice"]),
        (["--weights", "1,a"], ["--weights", "'1,a'"]),
        (["--weights", "1,inf"], ["--weights", "'1,inf'"]),
        (["--weights", "nan"], ["--weights", "'nan'"]),
        (["--weights", "-1,2"], ["--weights", "'-1,2'", "below 0"]),
        (["--weights", "-.5,1"], ["--weights", "'-.5,1'", "below 0"]),
        (["--weights", "0,0.0"], ["--weights", "'0,0.0'", "above 0"]),
        (["--device", "gpu"], ["--device", "'gpu'", "cuda:N"]),
        (["--dtype", "int8"], ["--dtype", "'int8'", "bfloat16"]),
        (["--attention", "flash"], ["--attention", "'flash'", "sdpa"]),
        (["--model-name", "x"], ["'--model-name'"]),
        (["--num", "3"], ["'--num'"]),
        (["stray"], ["'stray'"]),
        (["--", "stray-a"], ["'stray-a'"]),
        (["--verbose", "-1"], ["--verbose", "'-1'"]),
        (["--fewer", "less"], ["--fewer", "'less'", "skip"]),
        (["--task", "classify"], ["--task", "'classify'", "choices"]),
        (["--choice_norm", "chars"], ["--choice_norm", "'chars'", "bytes"]),
        (["--stop", ""], ["--stop", "''", "empty", "--stop none"]),
        (["--stop"], ["--stop", "expected one argument"]),
        (["--stop", "---"], ["--stop", "expected one argument"]),
        (["--stop=--"], ["--stop", "'--'"]),
        (["--instruction=--"], ["--instruction", "'--'"]),
        (["--stop", r"\boxed"], ["--stop", r"'\boxed'", r"holds \b", r"\uNNNN", "written twice"]),
        (["--stop", r"\x4"], [r"holds \x,"]),
        (["--stop", r"\u12"], [r"holds \u,"]),
        (["--stop", "a\\"], ["holds \\,", "written twice"]),
        (["--stop", r"\ud83d"], [r"holds \ud83d", "half a character"]),
        (["--stop", "\udcff"], ["not UTF-8"]),
        (["--extract", "lines"], ["--extract", "'lines'", "after:TEXT", "last_number"]),
        (["--extract", "line:2"], ["'line:2'"]),
        (["--extract", "after:"], ["'after:'"]),
        (["--extract", "regex:"], ["'regex:'"]),
        (["--extract", "regex:("], ["--extract", "'('", "no regular expression"]),
        (["--extract", ""], ["--extract", "''"]),
        (["--temperature", "0"], ["--temperature", "'0'", "above 0"]),
        (["--temperature", "-1"], ["--temperature", "'-1'"]),
        (["--temperature", "inf"], ["--temperature", "'inf'"]),
        (["--top_p", "0"], ["--top_p", "'0'"]),
        (["--top_p", "1.1"], ["--top_p", "'1.1'", "at most 1"]),
        (["--sample_seed", "-1"], ["--sample_seed", "'-1'"]),
        (["--sample_seed", "1.5"], ["--sample_seed", "'1.5'"]),
        (["--line\nbreak"], ["error"]),
    ],
)
def test_mistake_is_one_line(capsys, args, named):
    with pytest.raises(SystemExit) as caught:
        parse(*args)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith(" (see --help)\n")
    for part in named:
        assert part in err, err


TOGETHER = {
    "--task choices --stop x": ["--stop", "--task choices"],
    "--task choices --stop none": ["--stop", "--task choices"],
    "--task choices --extract line": ["--extract", "--task choices"],
    "--task choices --max_new_tokens 20": ["--max_new_tokens", "--task choices"],
    "--task choices --temperature 1": ["--temperature", "--task choices"],
    "--task choices --top_p 1": ["--top_p", "--task choices"],
    "--task choices --sample_seed 0": ["--sample_seed", "--task choices"],
    "--choice_norm sum": ["--choice_norm", "--task choices"],
    "--task generate --choice_norm mean": ["--choice_norm", "--task choices"],
    "--top_p 0.9": ["--top_p", "--temperature"],
    "--sample_seed 3": ["--sample_seed", "--temperature"],
    "--stop none --stop x": ["--stop", "none", r"\x6eone"],
    "--stop x --stop none": ["--stop", "none"],
}


@pytest.mark.parametrize("script", ["generate", "flex_attention_generate"])
@pytest.mark.parametrize("typed", TOGETHER)
def test_flags_that_do_not_go_together(capsys, script, typed):
    """Also where what is given is the default: it says something that is not done."""
    with pytest.raises(SystemExit) as caught:
        import_module(script).parse_args(typed.split())
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith(" (see --help)\n")
    for part in TOGETHER[typed]:
        assert part in err, err


@pytest.mark.parametrize(
    ("typed", "stop"),
    [
        ([], None),
        (["none"], ()),
        (["None"], ("None",)),
        ([r"\x6eone"], ("none",)),
        (["none."], ("none.",)),
        ([r"\n\n", "Q:", "\n\n"], ("\n\n", "Q:")),  # as typed in quotes, and by a shell's $'\n\n'
        ([r"\\n"], (r"\n",)),
        ([r"\\\n"], ("\\\n",)),
        ([r"\\boxed"], (r"\boxed",)),
        ([r"</answer>\t\u2028\xe9"], ("</answer>\t\u2028é",)),
        ([" "], (" ",)),
    ],
)
def test_stops(typed, stop):
    import generate

    argv = [part for text in typed for part in ("--stop", text)]
    assert generate.parse_args(argv).generation.stop == stop
    argv = [f"--stop={text}" for text in typed]
    assert generate.parse_args(argv).generation.stop == stop


def test_a_stop_that_begins_like_a_flag_is_the_stop_that_was_typed():
    import generate

    for text in ("---", "-", "--my-own-end"):
        assert generate.parse_args([f"--stop={text}"]).generation.stop == (text,)


def test_drawing():
    import generate

    config = generate.parse_args(["--temperature", "0.7"])
    assert config.generation.sampling == SamplingConfig(temperature=0.7, top_p=1.0, seed=0)
    argv = ["--temperature", "2", "--top_p", "0.9", "--sample_seed", "5"]
    config = generate.parse_args(argv)
    assert config.generation.sampling == SamplingConfig(temperature=2.0, top_p=0.9, seed=5)


def test_help_shows_one_spelling_of_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name in DEFAULTS:
        assert f"--{name}" in shown
        assert "_" not in name or f"--{name.replace('_', '-')}" not in shown


def test_parsing_imports_nothing_heavy():
    body = "print([m for m in ('torch', 'transformers', 'pandas', 'pyarrow') if m in sys.modules])"
    assert run_script(body=f"import dataset; {body}").stdout == "[]\n"


@pytest.mark.parametrize("script", ["generate", "flex_attention_generate", "paraphrase", "score"])
def test_help_is_quick(script):
    """Under 0.3 s on a machine that does nothing else; here others may be at work."""
    seconds = []
    for _ in range(5):  # the quickest counts
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, f"{script}.py", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        seconds.append(time.monotonic() - start)
        assert done.returncode == 0
        if seconds[-1] < 0.3:
            return
    assert min(seconds) < 1, seconds


def test_the_flags_offer_what_is_registered():
    assert set(FUSION_NAMES) == set(FUSIONS)
    assert POSITIONS == positions.POSITIONS


def test_defaults_are_those_of_the_configurations():
    """With no flag at all a script runs what its configuration is made with."""
    import flex_attention_generate
    import generate
    import paraphrase

    assert generate.parse_args([]) == ExperimentConfig(method=LogitFusionConfig())
    fused = ExperimentConfig(method=AttentionFusionConfig())
    assert flex_attention_generate.parse_args([]) == fused
    assert paraphrase.parse_args([]) == ParaphraseRunConfig()
    checked = ParaphraseCheckConfig(file="f.jsonl")
    assert paraphrase.parse_args(["--check", "f.jsonl"]) == checked
    assert asdict(AttentionFusion()) == asdict(AttentionFusionConfig())


def test_every_flag_reaches_the_configuration():
    import flex_attention_generate

    given = {name: text for name, (text, _) in GIVEN.items()}
    columns = ("group_by", "paraphrase_column", "answer_column", "where")
    of_hub = {name: given.pop(name) for name in ("dataset_revision", "split", *columns)}
    for name in ("overwrite", "indexs", "num_manual", "num_auto", "seed"):
        del given[name]  # they go with other flags
    given |= {"dataset": "webqa", "layout": "concat", "positions": "left", "weights": "1,2,3"}
    given["fusion_tau"] = "0.5"
    of_choices = {name: given.pop(name) for name in ("task", "choice_norm")}
    argv = [part for name, text in given.items() for part in (f"--{name}", text) if part]
    usual = flex_attention_generate.parse_args([])
    config = flex_attention_generate.parse_args(argv)
    changed = {
        *("method.layout", "method.positions", "method.tau", "method.weights"),
        *("questions.dataset", "questions.options.data_dir", "questions.options.max_samples"),
        *("questions.options.paraphrase_model", "questions.options.num_paraphrases"),
        *("model.name", "model.revision", "model.device", "model.dtype", "model.attention"),
        *("prompt.instruction", "prompt.few_shot", "prompt.num_few_shot", "prompt.chat_template"),
        *("generation.max_new_tokens", "generation.batch_size", "output.folder", "lemmas"),
        *("generation.stop", "generation.sampling", "task.extract", "questions.options.fewer"),
        *("workers.number", "workers.address", "model.gpus_per_worker", "output.part_rows"),
        "verbose",
    }
    assert differing(config, usual) == changed
    argv = [part for name, text in of_choices.items() for part in (f"--{name}", text)]
    config = flex_attention_generate.parse_args(argv)
    assert differing(config, usual) == {"task.name", "task.choice_norm"}
    argv = [part for name, text in of_hub.items() for part in (f"--{name}", text)]
    config = flex_attention_generate.parse_args(["--dataset", "org/name", *argv])
    changed = {f"questions.options.{name}" for name in of_hub}
    assert differing(config, usual) == {"questions.dataset"} | changed


def differing(config, usual) -> set[str]:
    return {path for path in leaves(config) if leaf(config, path) != leaf(usual, path)}


def leaves(value, path="") -> list[str]:
    """The dotted names of all settings of a configuration."""
    if path in ("lemmas", "generation.sampling", "task.extract") or not is_dataclass(value):
        return [path]
    names = (field.name for field in fields(value))
    return [p for n in names for p in leaves(getattr(value, n), f"{path}.{n}".lstrip("."))]


def leaf(config, path: str):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(
    "body, code, err",
    [
        ("pass", 0, ""),
        ("raise UserError('no file x.csv')", 2, "error: no file x.csv\n"),
        ("raise UserError('two\\nlines')", 2, "error: two lines\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_run(body, code, err):
    done = run_script(body=body)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", err)


def test_run_leaves_faults_of_the_program_alone():
    def main(args):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run(main, make_parser().parse_args([]))


def test_run_passes_the_arguments():
    seen = []
    args = make_parser().parse_args(["--max_samples", "2"])
    run(seen.append, args)
    assert seen == [args]
    with pytest.raises(SystemExit):
        run(lambda args: (_ for _ in ()).throw(UserError("x")), args)
