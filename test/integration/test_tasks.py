"""What a command line does with questions: it scores choices, draws, stops and extracts answers.

Held against plain forwards of transformers over whole prompts. With questions that have unlike
numbers of paraphrases, choices, or no answers.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small import INSTRUCTION, MARK, NAMED_TAU, QUESTIONS, run_script, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

import flex_attention_generate
import generate
from self_ensemble.data import prompt_template
from self_ensemble.data.extraction import FIRST_LINE
from self_ensemble.data.result_files import read_manifest, read_results
from self_ensemble.generation.sampling import uniform
from self_ensemble.methods.votes import majority

pytestmark = pytest.mark.usefixtures("models_kept")

SCRIPTS = {"generate": generate, "flex_attention_generate": flex_attention_generate}
TEMPLATE = prompt_template(INSTRUCTION, [])
CHOICES = [[*row["answers"], "the city of x", "ô’的"] for row in QUESTIONS]
LIMIT = 6
# With these --num_paraphrases is no flag.
NO_NUMBER = {"origin", "self_consistency", "--indexs"}


@dataclass(frozen=True)
class Ran:
    """What a run left: its exit status, its stderr, its file, its table and its manifest."""

    code: int
    err: str
    stem: Path | None = None
    rows: list[dict] | None = None
    manifest: dict | None = None

    def column(self, name: str) -> list:
        return [row[name] for row in self.rows]


@pytest.fixture
def ask(small, tmp_path, capsys):
    """Runs a script on questions; what is given comes behind and so overrides."""

    def ask(script, questions, *argv) -> Ran:
        path = write_jsonl(tmp_path / "capitals.jsonl", questions)
        capsys.readouterr()
        code = run_script(
            script,
            *("--dataset", path, "--model", small.folder, "--output_dir", tmp_path / "out"),
            *("--instruction", INSTRUCTION, "--batch_size", 2),
            *(() if NO_NUMBER & {*argv} else ("--num_paraphrases", 3)),
            *(() if "choices" in argv else ("--max_new_tokens", LIMIT)),
            *argv,
        )
        out, err = capsys.readouterr()
        assert out == ""
        found = re.search(r"(?:^wrote |^added .+ to |^)(\S+)\.feather", err, re.MULTILINE)
        if code != 0:
            return Ran(code, err)
        rows = read_results(f"{found[1]}.feather").to_dict("records")
        assert read_results(f"{found[1]}.csv").to_dict("records") == rows
        return Ran(code, err, Path(found[1]), rows, read_manifest(found[1]))

    return ask


def with_choices(choices=CHOICES):
    return [row | {"choices": each} for row, each in zip(QUESTIONS, choices, strict=True)]


def refused(ran: Ran) -> str:
    """The sentence, behind what is said of the questions."""
    *before, last = ran.err.splitlines()
    assert not any(line.startswith("error") for line in before), ran.err
    assert ran.code == 2 and last.startswith("error: "), ran.err
    return last


# ---- choices --------------------------------------------------------------------------------


@torch.no_grad()
def stock_logprobs(small, paraphrase: str, choice: str) -> list[float]:
    """Of the choice's tokens, by one forward over prompt, space and choice."""
    prompt = TEMPLATE.render(paraphrase)
    encoded = small.tokenizer(f"{prompt} {choice}", return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"])
    logprobs = small.model(ids[None]).logits[0].double().log_softmax(-1)
    of_choice = [i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt)]
    return [float(logprobs[i - 1, ids[i]]) for i in of_choice]


def check_scores(row, logprobs: list[list[float]]):
    """logprobs: of each choice's tokens."""
    for choice, each, total, mean, by_byte in zip(
        *(row["choices"], logprobs, row["choice_sum"], row["choice_mean"], row["choice_bytes"]),
        strict=True,
    ):
        assert total == pytest.approx(sum(each), abs=1e-3)
        assert mean == pytest.approx(sum(each) / len(each), abs=1e-3)
        assert by_byte == pytest.approx(sum(each) / len(choice.encode()), abs=1e-3)


@pytest.mark.parametrize("norm", ["sum", "mean", "bytes"])
def test_choices_of_every_paraphrase_are_those_of_stock_forwards(small, ask, norm):
    argv = ("--method", "per_prompt", "--task", "choices", "--choice_norm", norm)
    ran = ask(generate, with_choices(), *argv)
    assert ran.stem.name == "per_prompt-choices-3"
    asked = [
        (q, c, p) for q, c in zip(QUESTIONS, CHOICES, strict=True) for p in q["paraphrases"][:3]
    ]
    for row, (question, choices, paraphrase) in zip(ran.rows, asked, strict=True):
        assert (row["uuid"], row["paraphrase"]) == (question["uuid"], paraphrase)
        assert row["choices"] == choices and row["answers"] == question["answers"]
        check_scores(row, [stock_logprobs(small, paraphrase, choice) for choice in choices])
        scores = row[f"choice_{norm}"]
        chosen = scores.index(max(scores))
        assert row["prediction"] == row["generation"] == choices[chosen]
        assert row["logprob"] == row["choice_sum"][chosen] and row["truncated"] is False


def test_the_norms_choose_differently(ask):
    """Or the test above would not tell them apart."""
    taken = []
    for norm in ("sum", "mean", "bytes"):
        argv = ("--task", "choices", "--choice_norm", norm, "--overwrite")
        taken.append(ask(generate, with_choices(), *argv).column("prediction"))
    assert len({tuple(each) for each in taken}) == 3, taken


METHODS = {
    f"flex_attention{NAMED_TAU}-choices-1": (flex_attention_generate, ()),
    "flex_attention-tau2-entropy1-choices-1": (
        flex_attention_generate,
        ("--fusion_tau", 2, "--weights_by", "entropy:1"),
    ),
    "weighted_avg-entropy1-choices-1": (
        generate,
        ("--method", "weighted_avg", "--weights_by", "entropy:1"),
    ),
    "flex_attention-joint-choices-1": (flex_attention_generate, ("--fusion", "joint")),
    "avg-choices-1": (generate, ()),
    "max-choices-1": (generate, ("--method", "max")),
    "weighted_avg-choices-1": (generate, ("--method", "weighted_avg")),
    "vote-choices-1": (generate, ("--method", "vote")),
}


@pytest.mark.parametrize("name", METHODS)
def test_through_one_paraphrase_every_method_scores_alike(small, ask, name):
    script, method = METHODS[name]
    argv = ("--task", "choices", "--num_paraphrases", 1, *method)
    ran = ask(script, with_choices(), *argv)
    assert ran.stem.name == name
    for row, question, choices in zip(ran.rows, QUESTIONS, CHOICES, strict=True):
        paraphrase = question["paraphrases"][0]
        check_scores(row, [stock_logprobs(small, paraphrase, choice) for choice in choices])


def test_the_original_wording_scores_choices(small, ask):
    ran = ask(generate, with_choices(), "--method", "origin", "--task", "choices")
    assert ran.stem.name == "origin-choices-1"
    for row, question, choices in zip(ran.rows, QUESTIONS, CHOICES, strict=True):
        check_scores(row, [stock_logprobs(small, question["question"], c) for c in choices])


def test_chosen_paraphrases_have_a_file_of_their_own(ask, tmp_path):
    argv = ("--task", "choices", "--indexs", "2,0")
    ran = ask(flex_attention_generate, with_choices(), *argv)
    folder = tmp_path / "out" / "capitals" / "tiny-llama" / "diversity"
    assert ran.stem == folder / f"flex_attention{NAMED_TAU}-choices-2_0"


def of_question(rows, uuid: str) -> list[dict]:
    return [row for row in rows if row["uuid"] == uuid]


@pytest.mark.parametrize("norm", ["sum", "mean", "bytes"])
def test_a_vote_takes_what_most_paraphrases_choose(ask, norm):
    argv = ("--task", "choices", "--num_paraphrases", 4, "--choice_norm", norm)
    each = ask(generate, with_choices(), "--method", "per_prompt", *argv).rows
    voted = ask(generate, with_choices(), "--method", "vote", *argv).rows
    for row in voted:
        own = of_question(each, row["uuid"])
        predictions = [other["prediction"] for other in own]
        most = max(predictions.count(prediction) for prediction in predictions)
        taken = next(other for other in own if predictions.count(other["prediction"]) == most)
        for column in ("prediction", "choice_sum", "choice_mean", "choice_bytes", "logprob"):
            assert row[column] == taken[column]


def test_ties_go_to_the_earlier_choice_and_are_counted(ask, monkeypatch):
    """In the demo nothing ties; here every likelihood is the same."""
    monkeypatch.setattr("self_ensemble.experiment.rows.normalized", lambda *args: -1.0)
    ran = ask(generate, with_choices(), "--task", "choices", "--max_samples", 3)
    assert ran.column("prediction") == [choices[0] for choices in CHOICES[:3]]
    assert ran.manifest["ties"] == 3
    assert ran.err.endswith("; ties that went to the earlier choice: 3\n")
    monkeypatch.undo()
    ran = ask(generate, with_choices(), "--task", "choices")
    assert ran.manifest["ties"] == 3 and len(ran.rows) == 7  # of the whole file


def test_what_is_said_of_scored_choices(ask):
    lines = ask(generate, with_choices(), "--task", "choices").err.splitlines()
    assert len(lines) == 2 and re.fullmatch(
        r"7 questions in \d+\.\d s, \d+\.\d questions/s; \d+ tokens encoded, "
        r"\d+ scored in \d+ rows; ties that went to the earlier choice: 0",
        lines[1],
    )


def test_the_manifest_of_scored_choices(ask):
    identity = ask(generate, with_choices(), "--task", "choices").manifest["identity"]
    assert list(identity) == [
        *("data", "model", "prompt", "paraphrases", "method", "dtype", "task", "choices")
    ]
    assert identity["task"] == "choices"


@pytest.mark.parametrize("script", SCRIPTS)
def test_other_choices_are_another_run(ask, script):
    script = SCRIPTS[script]
    assert ask(script, with_choices(), "--task", "choices", "--max_samples", 2).code == 0
    others = with_choices([*CHOICES[:-1], [*CHOICES[-1], "one more"]])  # of a question not asked
    err = refused(ask(script, others, "--task", "choices"))
    assert "capitals" in err and "choices is " in err
    err = refused(ask(script, with_choices(), "--task", "choices", "--choice_norm", "mean"))
    assert 'choice_norm is "sum" there and "mean" here' in err


def test_questions_without_choices_cannot_be_scored(ask):
    err = refused(ask(generate, QUESTIONS, "--task", "choices"))
    assert "--task choices" in err and "capitals" in err and "column choices" in err
    rows = with_choices()
    del rows[2]["choices"]
    err = refused(ask(flex_attention_generate, rows, "--task", "choices"))
    assert "line 3 of " in err and "u2" in err and "no choices" in err


@pytest.mark.parametrize("script", SCRIPTS)
def test_choices_that_are_not_scored_are_passed_on(ask, script):
    told = (
        "the questions give choices, which are passed on and not used: --task choices scores them"
    )
    script = SCRIPTS[script]
    plain = ask(script, QUESTIONS)
    assert told not in plain.err and "choices" not in plain.rows[0]
    passed = ask(script, with_choices(), "--overwrite")
    assert passed.err.count(told) == 1
    assert passed.column("choices") == CHOICES
    assert passed.column("generation") == plain.column("generation")
    # No answer depends on them.
    assert passed.manifest["identity"] == plain.manifest["identity"]
    some = with_choices()
    for row in some[::2]:
        del row["choices"]
    expected = [[] if i % 2 == 0 else choices for i, choices in enumerate(CHOICES)]
    assert ask(script, some, "--overwrite").column("choices") == expected


def test_an_extended_file_has_the_choices_of_all_its_questions(ask):
    assert ask(generate, QUESTIONS, "--max_samples", 3).code == 0
    assert ask(generate, with_choices()).column("choices") == CHOICES


def test_a_run_of_each_task_beside_the_other(ask):
    scored = ask(generate, with_choices(), "--task", "choices")
    answered = ask(generate, with_choices())
    assert scored.stem != answered.stem
    assert "is finished already" in ask(generate, with_choices(), "--task", "choices").err


def test_lemmas_of_choices(ask):
    argv = ("--task", "choices", "--choice_norm", "mean")
    before = ask(generate, with_choices(), *argv)
    ran = ask(generate, with_choices(), *argv, "--lemmaize", "--spacy_model", "lookup")
    assert ran.stem == before.stem and all(ran.column("predict_lemma"))
    assert ran.column("choice_mean") == before.column("choice_mean")
    err = refused(ask(generate, with_choices(), "--task", "choices", "--lemmaize"))
    assert 'choice_norm is "mean" there and "sum" here' in err


# ---- no answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [(), ("--task", "choices")])
def test_questions_without_answers_are_answered(ask, argv):
    rows = [
        {name: value for name, value in row.items() if name != "answers"} for row in with_choices()
    ]
    for script in SCRIPTS.values():
        ran = ask(script, rows, *argv)
        assert ran.column("answers") == [[]] * 7 and any(ran.column("generation"))
        ran = ask(script, rows, *argv, "--lemmaize", "--spacy_model", "lookup")
        assert ran.column("answer_lemmas") == [[]] * 7
        assert ran.column("answers") == [[]] * 7


# ---- stops and extraction -------------------------------------------------------------------


def test_only_the_end_of_sequence_ends_an_answer(small, ask):
    """Every row goes on over newlines, as stock greedy generation does."""
    ran = ask(generate, QUESTIONS, "--method", "origin", "--stop", "none", "--max_new_tokens", 20)
    assert any("\n" in text.strip() for text in ran.column("generation"))
    for row, question in zip(ran.rows, QUESTIONS, strict=True):
        ids = small.tokenizer(TEMPLATE.render(question["question"]), return_tensors="pt").input_ids
        made = small.model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=1)[0]
        made = made[ids.shape[1] :].tolist()
        assert row["generation"] == small.tokenizer.decode(made, skip_special_tokens=True)
        assert row["truncated"] == (made[-1] != small.tokenizer.eos_token_id)
    assert ran.manifest["identity"]["stop"] == []


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "typed", [["e"], ["e", "ir", "Q:"], [r"\n"], [r"\x6e", r"\u0069r"], ["none of this"]]
)
def test_an_answer_ends_before_the_first_stop(ask, script, typed):
    """That of a run that goes on, cut at the first stop in it.

    None of these is in the special token <mark>, which is looked through and not shown.
    """
    script, long = SCRIPTS[script], ("--max_new_tokens", 20, "--overwrite")
    stops = [text.encode().decode("unicode_escape") for text in typed]
    flags = [part for text in typed for part in ("--stop", text)]
    ran = ask(script, QUESTIONS, *flags, *long)
    whole = ask(script, QUESTIONS, "--stop", "none", *long)
    for row, other in zip(ran.rows, whole.rows, strict=True):
        ends = [other["generation"].find(stop) for stop in stops]
        found = [end for end in ends if end >= 0]
        assert row["generation"] == other["generation"][: min(found, default=None)]
        assert row["truncated"] == (other["truncated"] and not found)
    assert ran.manifest["identity"]["stop"] == sorted(stops)
    if typed == ["none of this"]:
        assert ran.column("generation") == whole.column("generation")
    else:
        assert ran.manifest["counts"]["decoded_tokens"] < whole.manifest["counts"]["decoded_tokens"]


@pytest.mark.parametrize(
    "argv, phrase",
    [
        (("--stop", r"\n\n"), r'stop is the first line there and ["\n\n"] here'),
        (("--stop", "none"), "stop is the first line there and [] here"),
        (("--extract", "all"), 'extract is "line" there and "all" here'),
        (("--fewer", "skip"), 'fewer is "error" there and "skip" here'),
    ],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_finished_file_of_other_settings_is_refused(ask, script, argv, phrase):
    script = SCRIPTS[script]
    assert ask(script, QUESTIONS).code == 0
    assert phrase in refused(ask(script, QUESTIONS, *argv))
    assert phrase in refused(ask(script, QUESTIONS, *argv, "--lemmaize"))
    assert ask(script, QUESTIONS, *argv, "--overwrite").code == 0
    assert "is finished already" in ask(script, QUESTIONS, *argv).err
    back = phrase.replace("there", "THERE").replace("here", "there").replace("THERE", "here")
    there, here = re.search(r"is (.+) here and (.+) there", back).groups()
    back = f"{phrase.split()[0]} is {here} there and {there} here"
    assert back in refused(ask(script, QUESTIONS))
    assert back in refused(ask(script, QUESTIONS, "--lemmaize"))


def test_a_prediction_is_what_is_extracted_and_the_generation_stays_whole(ask):
    long = ("--stop", "none", "--max_new_tokens", 30, "--temperature", 2, "--overwrite")
    plain = ask(generate, QUESTIONS, *long)
    all_of_it = ask(generate, QUESTIONS, *long, "--extract", "all")
    assert all_of_it.column("generation") == plain.column("generation")
    texts = all_of_it.column("generation")
    assert all_of_it.column("prediction") == [text.strip() for text in texts]
    assert plain.column("prediction") != all_of_it.column("prediction")
    last = ask(generate, QUESTIONS, *long, "--extract", r"regex:(\S)\s*$")
    assert last.column("prediction") == [text.strip()[-1:] for text in texts]
    assert last.manifest["identity"]["extract"] == r"regex:(\S)\s*$"


def test_where_an_answer_ends_before_what_is_extracted_it_is_said(ask):
    """A chain of thought that ends at its first newline is cut without a word elsewhere
    (YongchengYAO/MedVision#19)."""
    told = (
        "--extract after:</think> looks at the first line alone, where answers end: "
        "--stop none lets them go on\n"
    )
    argv = ("--extract", "after:</think>")
    assert ask(generate, QUESTIONS, *argv).err.startswith(told)
    assert told not in ask(generate, QUESTIONS, *argv, "--stop", "none", "--overwrite").err
    assert "first line" not in ask(generate, QUESTIONS, "--extract", "line", "--overwrite").err


def test_a_vote_compares_what_is_extracted(ask):
    long = ("--stop", "none", "--temperature", 2, "--max_new_tokens", 20, "--num_paraphrases", 4)
    taken = {}
    for extract in ("line", "regex:[a-e]"):
        argv = (*long, "--extract", extract, "--overwrite")
        each = ask(generate, QUESTIONS, "--method", "per_prompt", *argv).rows
        voted = ask(generate, QUESTIONS, "--method", "vote", *argv).rows
        for row in voted:
            own = of_question(each, row["uuid"])
            expected = own[majority([other["prediction"] for other in own])]
            assert row["generation"] == expected["generation"]
            assert row["prediction"] == expected["prediction"]
        taken[extract] = [row["generation"] for row in voted]
    assert taken["line"] != taken["regex:[a-e]"]  # or it would not have mattered


# ---- drawn answers --------------------------------------------------------------------------


def drawn(small, paraphrase: str, *, seed, key, temperature, top_p=1.0) -> str:
    """What stock forwards and plain arithmetic draw, token by token."""
    ids = small.tokenizer(TEMPLATE.render(paraphrase))["input_ids"]
    made: list[int] = []
    while len(made) < LIMIT:
        with torch.no_grad():
            logits = small.model(torch.tensor([ids + made])).logits[0, -1].double()
        probabilities = (logits / temperature).softmax(-1)
        order = sorted(range(len(probabilities)), key=lambda i: -float(probabilities[i]))
        kept, mass = set(), 0.0
        for token in order:
            if mass >= top_p:
                break
            kept.add(token)
            mass += float(probabilities[token])
        at, total = uniform(seed, *key, len(made)) * mass, 0.0
        for token in sorted(kept):
            total += float(probabilities[token])
            if total > at:
                break
        if token == small.tokenizer.eos_token_id:
            break
        made.append(token)
    return small.tokenizer.decode(made, skip_special_tokens=True)


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_what_is_drawn_is_plain_arithmetic(small, ask, top_p):
    argv = ("--temperature", 1.5, "--sample_seed", 3, "--stop", "none", "--top_p", top_p)
    ran = ask(generate, QUESTIONS, "--method", "per_prompt", *argv)
    assert ran.stem.name == "per_prompt-t1.5-seed3-3"
    for number, row in enumerate(ran.rows):
        expected = drawn(
            small,
            row["paraphrase"],
            seed=3,
            key=(row["uuid"], number % 3),
            temperature=1.5,
            top_p=top_p,
        )
        assert row["generation"] == expected


@pytest.mark.parametrize("script", SCRIPTS)
def test_draws_depend_on_seed_and_uuid_alone(ask, script):
    script = SCRIPTS[script]
    argv = ("--temperature", 2, "--stop", "none", "--overwrite")
    ran = ask(script, QUESTIONS, *argv)
    assert ran.stem.name.endswith("-t2-3")
    expected = dict(zip(ran.column("uuid"), ran.column("generation"), strict=True))
    turned = ask(script, QUESTIONS[::-1][:5], *argv, "--batch_size", 5)
    for row in turned.rows:
        assert row["generation"] == expected[row["uuid"]]
    other = ask(script, QUESTIONS, *argv, "--sample_seed", 1)
    assert other.stem.name.endswith("-t2-seed1-3")
    assert other.column("generation") != ran.column("generation")
    renamed = [row | {"uuid": f"another {row['uuid']}"} for row in QUESTIONS]
    assert ask(script, renamed, *argv).column("generation") != ran.column("generation")
    greedy = ask(script, QUESTIONS, "--stop", "none")
    assert greedy.column("generation") != ran.column("generation")
    # Where the temperature is 1 it is one, elsewhere such a request was answered greedily
    # (huggingface/text-generation-inference#687).
    plain = ask(script, QUESTIONS, "--temperature", 1, "--stop", "none")
    assert plain.stem.name.endswith("-t1-3")
    assert plain.column("generation") not in (ran.column("generation"), greedy.column("generation"))
    # Almost without temperature it is the likeliest token again.
    cold = ask(script, QUESTIONS, "--temperature", 1e-4, "--stop", "none")
    assert cold.column("generation") == greedy.column("generation")


def test_what_is_drawn_otherwise_is_another_run(ask):
    argv = ("--temperature", 0.7)
    identity = ask(generate, QUESTIONS, *argv).manifest["identity"]
    assert identity["sampling"] == {"temperature": 0.7, "top_p": 1.0, "seed": 0}
    err = refused(ask(generate, QUESTIONS, *argv, "--top_p", 0.9))
    assert "sampling.top_p is 1.0 there and 0.9 here" in err
    assert ask(generate, QUESTIONS, *argv, "--lemmaize", "--spacy_model", "lookup").code == 0


# ---- self-consistency -----------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 4])
def test_one_wording_is_answered_several_times_and_the_answers_vote(small, ask, samples):
    argv = ("--method", "self_consistency", "--samples", samples, "--stop", "none")
    ran = ask(generate, QUESTIONS, *argv)
    assert ran.stem.name == f"self_consistency-t0.7-{samples}"
    distinct = set()
    for row, question in zip(ran.rows, QUESTIONS, strict=True):
        draws = [
            drawn(small, question["question"], seed=0, key=(row["uuid"], k), temperature=0.7)
            for k in range(samples)
        ]
        taken = majority([FIRST_LINE(text) for text in draws])
        assert row["generation"] == draws[taken] and row["paraphrases"] == [question["question"]]
        distinct.add(len(set(draws)))
    # Elsewhere the repeats of a request were one and the same (lm-evaluation-harness#3046).
    assert max(distinct) == samples
    identity = ran.manifest["identity"]
    assert identity["method"] == {"name": "self_consistency", "samples": samples}
    assert identity["sampling"] == {"temperature": 0.7, "top_p": 1.0, "seed": 0}
    # Its rows and tokens are those of all draws.
    rows = ran.manifest["counts"]["decode_rows"]
    once = ask(generate, QUESTIONS, "--method", "origin", "--temperature", 0.7, "--stop", "none")
    assert rows >= samples * once.manifest["counts"]["decode_rows"] / 2
    assert ran.manifest["counts"]["decoded_tokens"] >= samples * len(QUESTIONS)
    if samples == 1:
        assert ran.column("generation") == once.column("generation")


def test_self_consistency_at_other_settings(ask):
    argv = ("--method", "self_consistency", "--temperature", 2, "--top_p", 0.9, "--sample_seed", 5)
    ran = ask(generate, QUESTIONS, *argv)
    assert ran.stem.name == "self_consistency-t2-seed5-5"
    sampling = {"temperature": 2.0, "top_p": 0.9, "seed": 5}
    assert ran.manifest["identity"]["sampling"] == sampling
    err = refused(ask(generate, QUESTIONS, *argv[:-4], "--sample_seed", 5))
    assert "sampling.top_p is 0.9 there and 1.0 here" in err
    # A seed needs no temperature where the method draws.
    usual = ask(generate, QUESTIONS, *argv[:2], "--sample_seed", 5)
    assert usual.stem.name == "self_consistency-t0.7-seed5-5"
    assert ask(generate, QUESTIONS, *argv, "--lemmaize", "--spacy_model", "lookup").code == 0


def test_what_is_extracted_votes(ask):
    argv = ("--method", "self_consistency", "--temperature", 2, "--stop", "none")
    line = ask(generate, QUESTIONS, *argv)
    by_letter = ask(generate, QUESTIONS, *argv, "--extract", "regex:[a-e]", "--overwrite")
    assert line.column("generation") != by_letter.column("generation")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--method", "vote", "--samples", 3), ["--samples", "vote"]),
        (("--samples", 5), ["--samples", "avg"]),
        (("--method", "self_consistency", "--samples", 0), ["--samples", "'0'"]),
        (("--method", "self_consistency", "--task", "choices"), ["choices", "self_consistency"]),
        (("--method", "self_consistency", "--num_paraphrases", 5), ["self_consistency asks the"]),
        (("--method", "self_consistency", "--indexs", 1), ["--indexs", "self_consistency asks"]),
        (("--method", "self_consistency", "--fewer", "use"), ["--fewer", "self_consistency asks"]),
        (("--method", "self_consistency", "--confidence", "trust"), ["uses no weights"]),
    ],
)
def test_what_self_consistency_does_not_use_is_refused(capsys, argv, named):
    assert run_script(generate, *argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and all(part in err for part in named)


# ---- unlike numbers of paraphrases ----------------------------------------------------------

# u1 has two paraphrases, u3 one, u4 none; the others four.
FEW = {1: 2, 3: 1, 4: 0}


def unlike(rows=QUESTIONS):
    return [
        row | {"paraphrases": row["paraphrases"][: FEW.get(i, 4)]} for i, row in enumerate(rows)
    ]


ALL_METHODS = {
    "attention": (flex_attention_generate, ()),
    "avg": (generate, ()),
    "weighted_avg": (generate, ("--method", "weighted_avg")),
    "confidence": (generate, ("--method", "weighted_max", "--confidence", "trust")),
    "vote": (generate, ("--method", "vote")),
}


@pytest.mark.parametrize("task", [(), ("--task", "choices"), ("--temperature", 1.5)])
@pytest.mark.parametrize("name", ALL_METHODS)
def test_what_each_question_has_is_fused_as_if_it_were_asked_alone(ask, name, task):
    script, method = ALL_METHODS[name]
    rows = unlike(with_choices())
    ran = ask(script, rows, *method, *task, "--fewer", "use")
    assert ran.column("uuid") == ["u0", "u1", "u2", "u3", "u5", "u6"]
    assert [len(each) for each in ran.column("paraphrases")] == [3, 2, 3, 1, 3, 3]
    assert (ran.manifest["left_out"], ran.manifest["with_fewer"]) == (1, 2)
    assert "1 of 7 questions are left out (--fewer use)" in ran.err
    assert "2 of 6 questions have fewer than 3 paraphrases" in ran.err
    for number, count in enumerate((3, 2, 3, 1)):
        argv = (*method, *task, "--num_paraphrases", count, "--overwrite")
        alone = ask(script, [rows[number]], *argv)
        assert alone.column("generation") == [ran.rows[number]["generation"]]
        assert alone.rows[0]["logprob"] == pytest.approx(ran.rows[number]["logprob"], abs=1e-3)


def test_each_paraphrase_that_there_is_has_a_row(ask):
    ran = ask(generate, unlike(), "--method", "per_prompt", "--fewer", "use")
    rows = Counter(ran.column("uuid"))
    assert rows == {"u0": 3, "u1": 2, "u2": 3, "u3": 1, "u5": 3, "u6": 3}
    asked = [p for row in unlike() for p in row["paraphrases"][:3]]
    assert ran.column("paraphrase") == asked
    alone = ask(generate, [unlike()[1]], "--method", "per_prompt", "--num_paraphrases", 2)
    assert alone.column("generation") == ran.column("generation")[3:5]


@pytest.mark.parametrize("script", SCRIPTS)
def test_questions_with_too_few_are_left_out(ask, script):
    script = SCRIPTS[script]
    ran = ask(script, unlike(), "--fewer", "skip")
    assert ran.column("uuid") == ["u0", "u2", "u5", "u6"]
    assert ran.manifest["left_out"] == 3 and ran.manifest["num_questions"] == 4
    assert "3 of 7 questions are left out (--fewer skip)" in ran.err
    assert ran.manifest["identity"]["fewer"] == "skip"
    whole = ask(script, QUESTIONS, "--overwrite")
    kept = [row for i, row in enumerate(whole.rows) if i not in FEW]
    assert [row["generation"] for row in kept] == ran.column("generation")


def test_confidences_of_questions_behind_one_that_is_left_out_are_their_own(ask):
    argv = ("--method", "weighted_avg", "--confidence", "trust")
    ran = ask(generate, unlike(), *argv, "--fewer", "skip")
    whole = ask(generate, QUESTIONS, *argv, "--overwrite")
    logprobs = [row["logprob"] for i, row in enumerate(whole.rows) if i not in FEW]
    assert ran.column("logprob") == pytest.approx(logprobs, abs=1e-3)


@pytest.mark.parametrize("fewer", ["use", "skip"])
def test_unlike_questions_are_extended(ask, fewer):
    """The questions that are left out count in no file."""
    for name, (script, method) in ALL_METHODS.items():
        argv = (*method, "--fewer", fewer)
        whole = ask(script, unlike(), *argv, "--overwrite")
        few = ask(script, unlike(), *argv, "--max_samples", 5, "--overwrite")
        assert len(few.rows) == (4 if fewer == "use" else 2)
        extended = ask(script, unlike(), *argv)
        assert extended.column("generation") == whole.column("generation"), name
        assert extended.manifest["left_out"] == whole.manifest["left_out"]
        assert extended.rows[: len(few.rows)] == few.rows


def test_weights_need_every_paraphrase(ask):
    argv = ("--weights", "1,2,3", "--fewer", "use")
    ran = ask(flex_attention_generate, unlike(), *argv)
    assert ran.code == 2 and "3 weights for 3 paraphrases, but line 2 of " in ran.err
    assert ask(flex_attention_generate, QUESTIONS, *argv).code == 0
    argv = ("--weights", "1,2,3", "--fewer", "skip", "--overwrite")
    assert ask(flex_attention_generate, unlike(), *argv).code == 0


def test_too_few_is_an_error_where_nothing_is_said(ask):
    err = refused(ask(generate, unlike()))
    assert "line 2 of " in err and "u1" in err and "--fewer use" in err and "--fewer skip" in err


# ---- thoughts -------------------------------------------------------------------------------


@pytest.fixture
def thinker(small, tmp_path):
    """A model that now and then ends a thought, which its chat template begins."""
    tokenizer = AutoTokenizer.from_pretrained(small.folder)
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}{{ '<think>\n' }}"
    tokenizer.add_tokens(["</think>"])
    model = AutoModelForCausalLM.from_pretrained(small.folder, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        newline = tokenizer.convert_tokens_to_ids("Ċ")
        model.lm_head.weight[-1] = 1.1 * model.lm_head.weight[newline]
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "thinker")
    return model, tokenizer, tmp_path / "thinker"


def test_what_follows_a_thought_is_the_prediction(ask, thinker):
    model, tokenizer, folder = thinker
    flags = ("--method", "origin", "--model", folder, "--chat_template", "--stop", "none")
    flags += ("--dtype", "float32", "--max_new_tokens", 30)
    ran = ask(generate, QUESTIONS, *flags, "--extract", "after:</think>")
    assert ran.manifest["identity"]["prompt"]["rendered_tail"] == "\nA:<think>\n"
    for row, question in zip(ran.rows, QUESTIONS, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": TEMPLATE.render(question["question"])}],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        stock = model.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=1)
        generation = tokenizer.decode(stock[0, ids.shape[1] :], skip_special_tokens=True)
        assert row["generation"] == generation
        _, found, behind = generation.rpartition("</think>")
        assert row["prediction"] == (behind.strip() if found else "")
    ended = ["</think>" in generation for generation in ran.column("generation")]
    assert any(ended) and not all(ended), ended
    refused = ask(generate, QUESTIONS, *flags)
    assert refused.code == 2 and "--extract after:</think>" in refused.err


def test_a_special_token_to_look_for_is_refused(ask):
    refused = ask(generate, QUESTIONS, "--extract", f"after:{MARK}", "--stop", "none")
    assert refused.code == 2 and f"--extract after:{MARK}: {MARK} is a special token" in refused.err
