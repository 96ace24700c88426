"""The bundled demo: what was trained is never asked, and the files are what they should be."""

import csv
import json
from collections import Counter

import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import choices, train
from self_ensemble.data import FewShot, load_dataset, prompt_template
from self_ensemble.data.datasets.demo import INSTRUCTION as DEMO_INSTRUCTION
from self_ensemble.system.bundled import (
    DEMO_CHOICES,
    DEMO_DIR,
    DEMO_FEW_SHOT,
    DEMO_MODEL,
    DEMO_QUESTIONS,
)


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    return pyarrow.parquet.read_table(DEMO_QUESTIONS).to_pylist()


@pytest.fixture(scope="module")
def facts() -> list[train.Fact]:
    return train.read_facts(DEMO_DIR / "facts.csv")


@pytest.fixture(scope="module")
def plan(facts) -> train.Plan:
    """What the script's defaults make of the tables."""
    settings = train.parse([])
    return train.make_plan(
        facts,
        train.read_templates(DEMO_DIR / "templates.csv"),
        wordings_per_fact=settings.wordings_per_fact,
        num_questions=settings.num_questions,
        num_tuning=settings.num_tuning,
        seed=settings.seed,
    )


@pytest.fixture(scope="module")
def templates() -> dict[str, set[str]]:
    """The templates of each relation."""
    by_relation: dict[str, set[str]] = {}
    for template in train.read_templates(DEMO_DIR / "templates.csv"):
        by_relation.setdefault(template.relation, set()).add(template.text)
    return by_relation


@pytest.fixture(scope="module")
def trained() -> list[dict]:
    with (DEMO_DIR / "trained.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def few_shot() -> list[dict]:
    return [json.loads(line) for line in DEMO_FEW_SHOT.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


def fill(template: str, subject: str) -> str:
    return template.replace("{subject}", subject)


def test_every_fact_is_trained_through_few_wordings(facts, templates, trained):
    counts = Counter((row["relation"], row["subject"]) for row in trained)
    assert set(counts) == {(fact.relation, fact.subject) for fact in facts}
    assert set(counts.values()) <= {1, 2, 3, 4}
    assert len({tuple(row.values()) for row in trained}) == len(trained)
    assert {(row["relation"], row["template"]) for row in trained} == {
        (relation, text) for relation, texts in templates.items() for text in texts
    }


def test_there_are_500_questions_of_10_paraphrases(questions):
    assert len(questions) >= 500
    assert len({question["uuid"] for question in questions}) == len(questions)
    for question in questions:
        assert len(set(question["paraphrases"])) == 10, question["uuid"]


def test_questions_ask_for_facts_of_the_table(questions, facts):
    answers = {(f.relation, f.subject): [f.answer, *f.aliases] for f in facts}
    for question in questions:
        assert question["answers"] == answers[question["relation"], question["subject"]]


def test_every_paraphrase_is_a_template_filled_with_the_subject(questions, templates):
    for question in questions:
        texts = {fill(text, question["subject"]) for text in templates[question["relation"]]}
        assert set(question["paraphrases"]) <= texts, question["uuid"]


def test_no_wording_that_is_asked_was_trained_for_its_fact(questions, trained):
    wordings: dict[tuple[str, str], set[str]] = {}
    for row in trained:
        text = fill(row["template"], row["subject"])
        wordings.setdefault((row["relation"], row["subject"]), set()).add(text)
    everything = set().union(*wordings.values())
    for question in questions:
        asked = set(question["paraphrases"])
        assert not asked & wordings[question["relation"], question["subject"]], question["uuid"]
        assert not asked & everything, question["uuid"]


def test_few_shot_facts_and_wordings_are_in_no_question(questions, facts, templates, few_shot):
    assert len(few_shot) == 5
    asked = {(question["relation"], question["subject"]) for question in questions}
    paraphrases = {
        (question["relation"], text) for question in questions for text in question["paraphrases"]
    }
    for shot in few_shot:
        sources = [
            (fact, text)
            for fact in facts
            if fact.answer == shot["answer"]
            for text in templates[fact.relation]
            if fill(text, fact.subject) == shot["question"]
        ]
        assert len(sources) == 1, shot["question"]
        [(fact, template)] = sources
        assert (fact.relation, fact.subject) not in asked
        for question in questions:
            if question["relation"] == fact.relation:
                assert (fact.relation, fill(template, question["subject"])) not in paraphrases


def test_the_script_writes_the_committed_questions(tmp_path, plan):
    """The division that the committed files hold is the one that the defaults make."""
    train.write_plan(plan, tmp_path)
    for name in ("trained.csv", "few_shot.jsonl"):
        assert (tmp_path / name).read_bytes() == (DEMO_DIR / name).read_bytes(), name
    written = load_dataset(str(tmp_path / "questions.parquet"), max_samples=None)
    assert written.fingerprint == load_dataset("demo", max_samples=None).fingerprint
    tested = {question.fact for question in plan.test}
    assert not tested & {question.fact for question in plan.tuning}


def test_the_choices_are_those_of_the_script(questions, facts):
    """Four a question, one of them right, whatever name it goes by; the rest is as it is asked."""
    rows = pyarrow.parquet.read_table(DEMO_CHOICES).to_pylist()
    made = choices.make_choices(questions, facts)
    assert [(row["choices"], row["answer_index"]) for row in rows] == made
    answers_of = {}
    for fact in facts:
        answers_of.setdefault(fact.relation, set()).add(fact.answer)
    for row, question in zip(rows, questions, strict=True):
        for column in ("uuid", "relation", "subject", "paraphrases"):
            assert row[column] == question[column]
        assert len(set(row["choices"])) == 4
        right = [c for c in row["choices"] if c.lower() in map(str.lower, question["answers"])]
        assert right == [row["choices"][row["answer_index"]]]
        assert set(row["choices"]) <= answers_of[row["relation"]]
    places = Counter(row["answer_index"] for row in rows)
    assert min(places.values()) >= 200
    # How common a choice is says little: the most common one is right about once in four times.
    common = Counter((fact.relation, fact.answer) for fact in facts)
    guessed = 0.0
    for row in rows:
        counts = [common[row["relation"], choice] for choice in row["choices"]]
        ties = [place for place, count in enumerate(counts) if count == max(counts)]
        guessed += (row["answer_index"] in ties) / len(ties)
    assert guessed / len(rows) < 0.3
    reversed_ = choices.make_choices(questions[::-1], facts)[::-1]
    assert reversed_ == made, "a draw depends on the question alone"


def test_the_choices_are_a_dataset(questions):
    dataset = load_dataset("demo_choices", max_samples=None)
    assert dataset.few_shot == load_dataset("demo", max_samples=1).few_shot
    assert dataset.instruction == DEMO_INSTRUCTION
    for record, question in zip(dataset.records, questions, strict=True):
        assert record.uuid == question["uuid"] and len(record.choices) == 4
        assert record.answers == (question["answers"][0],) and record.answers[0] in record.choices


def test_the_model_is_small(tokenizer):
    assert [path.name for path in DEMO_MODEL.glob("*.safetensors")] == ["model.safetensors"]
    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) <= 10_000_000
    model, info = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.bos_token_id == tokenizer.bos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_the_tokenizer_puts_one_bos_and_loses_nothing(tokenizer, questions):
    for question in questions[:50]:
        text = f"{DEMO_INSTRUCTION}\n\nQ: {question['paraphrases'][0]}\nA:"
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(ids[1:]) == text


def test_documents_hold_the_prompts_that_are_asked(tokenizer, plan):
    """A training document is, token for token, a prompt with more and more demonstrations."""
    ids, answers = train.Documents(plan, tokenizer, seed=3).draw(512)
    assert 400 < len(ids) <= 512
    text = tokenizer.decode(ids[1:])
    shots = [
        FewShot(*example.removeprefix("Q: ").split("\nA: "))
        for example in text.removesuffix("\n\n").split("\n\n")[1:]
    ]
    assert text + "Q: " == prompt_template(DEMO_INSTRUCTION, shots).head
    taught = {
        (wording.ask(fact.subject), fact.answer)
        for fact, wordings in plan.trained.items()
        for wording in wordings
    }
    assert {(shot.question, shot.answer) for shot in shots} <= taught
    assert len(shots) >= 10
    for count, shot in enumerate(shots):
        prompt = prompt_template(DEMO_INSTRUCTION, shots[:count]).render(shot.question)
        asked = tokenizer(prompt)["input_ids"]
        assert ids[: len(asked)] == asked
        # What follows the prompt is the answer, up to the newline that stops generation.
        end = answers.index(False, len(asked))
        assert not answers[len(asked) - 1] and all(answers[len(asked) : end])
        assert tokenizer.decode(ids[len(asked) : end]) == f" {shot.answer}\n"
