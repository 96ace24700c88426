"""The library's face, on the demo model, on a caller's own, and on what a user may get wrong."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import stock_answer
from transformers import AutoModelForCausalLM, AutoTokenizer

import self_ensemble
from self_ensemble import Ensemble, FewShot, Prompt, UserError, WholePrompts
from self_ensemble.data import load_dataset
from self_ensemble.methods.config import DEFAULT_TAU
from self_ensemble.methods.names import method_names
from self_ensemble.methods.registries import LOGIT_METHODS, VOTES
from self_ensemble.system.bundled import DEMO_MODEL

ROOT = Path(__file__).resolve().parents[2]

QUESTIONS = [
    ["What is the capital of France?", "France's capital is which city?"],
    ["Which city is the capital of Peru?", "Peru has which capital?"],
    ["The capital of Japan is [MASK].", "Which city is Japan's capital?"],
]


@pytest.fixture(scope="module")
def demo():
    return Ensemble.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def asked():
    records = load_dataset("demo", max_samples=12).records
    return [record.paraphrases[:3] for record in records]


def test_the_example_of_the_documentation(demo):
    answers = demo.generate(QUESTIONS, method="attention", max_new_tokens=20)
    assert [answer.question for answer in answers] == [0, 1, 2]
    for answer in answers:
        assert answer.text and "\n" not in answer.text and answer.logprob <= 0
        assert answer.generation.strip().startswith(answer.text)
        assert answer.truncated is False and answer.paraphrase is None


@pytest.mark.parametrize("method", method_names())
def test_every_method_answers_in_the_order_asked(demo, asked, method):
    """However the questions are batched; and streamed answers are the same, in another order."""
    answers = demo.generate(asked, method=method)
    each = 3 if method == "per_prompt" else 1
    assert [answer.question for answer in answers] == [
        index for index in range(len(asked)) for _ in range(each)
    ]
    small = demo.generate(asked, method=method, batch_size=2)
    assert [(a.text, a.token_ids) for a in small] == [(a.text, a.token_ids) for a in answers]
    streamed = list(demo.stream(asked, method=method, batch_size=5))
    assert sorted(a.token_ids for a in streamed) == sorted(a.token_ids for a in answers)
    backwards = demo.generate(asked[::-1], method=method)
    assert sorted(a.text for a in backwards) == sorted(a.text for a in answers)


def test_votes_and_single_paraphrases_are_told(demo, asked):
    single = demo.generate(asked, method="per_prompt")
    assert [answer.paraphrase for answer in single] == [0, 1, 2] * len(asked)
    for question, answer in enumerate(demo.generate(asked, method="vote")):
        voted = [a for a in single if a.question == question][answer.paraphrase]
        assert (voted.text, voted.logprob) == (answer.text, answer.logprob)
    originals = demo.generate(asked, method="origin")
    assert [a.text for a in originals] == [a.text for a in single if a.paraphrase == 0]


def test_settings_reach_the_method(demo, asked):
    def logprobs(**settings):
        return [answer.logprob for answer in demo.generate(asked, **settings)]

    plain = logprobs()
    usual = DEFAULT_TAU["mean"]
    assert logprobs(tau=usual) == logprobs(tau=None) == plain
    changed = [
        {"tau": usual + 1},
        {"tau": usual - 1},
        {"weights": (1, 0, 0)},
        {"tau": 0.5, "weights_by": "entropy:1"},
        {"fusion": "joint"},
        {"positions": "left"},
        {"layout": "concat"},
    ]
    for settings in changed:
        assert logprobs(**settings) != plain, settings
    first = [a.text for a in demo.generate(asked, method="per_prompt") if a.paraphrase == 0]
    assert [a.text for a in demo.generate(asked, weights=(1, 0, 0))] == first
    weights = [(0, 1, 0)] * len(asked)
    second = [a.text for a in demo.generate(asked, method="per_prompt") if a.paraphrase == 1]
    weighted = demo.generate(asked, method="weighted_avg", weights=weights)
    assert [a.text for a in weighted] == second


def test_a_callers_model_is_answered_with_and_given_back(asked):
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model.train()
    prompt = tokenizer("Q: What is the capital of France?\nA:", return_tensors="pt")

    def generate():
        training = model.training
        found = model.eval().generate(**prompt, max_new_tokens=8, do_sample=False).tolist()
        model.train(training)
        return found

    before, state = generate(), dict(model.config.to_dict())
    implementation = model.config._attn_implementation
    ensemble = Ensemble(model, tokenizer, prompt=Prompt.of_demo())
    expected = Ensemble.from_pretrained("demo", device="cpu").generate(asked)
    assert generate() == before
    stream = ensemble.stream(asked, batch_size=4)
    found = []
    for answer in stream:  # used between two answers
        found.append(answer)
        assert generate() == before and model.training
        assert model.config._attn_implementation == implementation
    assert sorted(a.question for a in found) == list(range(len(asked)))
    assert [a.text for a in sorted(found, key=lambda a: a.question)] == [a.text for a in expected]
    assert model.config.to_dict() == state
    # A stream that is left in the middle.
    open_one = ensemble.stream(asked, batch_size=1)
    next(open_one)
    open_one.close()
    assert generate() == before and model.training
    loss = model(**prompt, labels=prompt["input_ids"]).loss
    loss.backward()  # nothing of ours is left in it
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_two_streams_with_different_prompts(demo, asked):
    other = Prompt("Say it in one word.", [("Capital of Mali?", "Bamako")])
    prompts = (demo.prompt, other)
    expected = [demo.generate(asked, prompt=prompt) for prompt in prompts]
    assert [a.logprob for a in expected[0]] != [a.logprob for a in expected[1]]
    for order in ("0 1", "1 0"):
        streams = [demo.stream(asked, prompt=prompt, batch_size=1) for prompt in prompts]
        found = [[], []]
        for _ in asked:
            for which in map(int, order.split()):
                found[which].append(next(streams[which]))
        for got, wanted in zip(found, expected, strict=True):
            by_question = sorted(got, key=lambda a: a.question)
            assert [a.token_ids for a in by_question] == [a.token_ids for a in wanted]


def test_whole_prompts_are_taken_as_they_are(small):
    """One prompt a question is what the model itself says; and five copies of it too."""
    ensemble = Ensemble(small.model, small.tokenizer, prompt=WholePrompts())
    prompts = [f"{text}\nA:" for text in ("Q: what capital city of is the", "Q: a word", "seven 7")]
    for copies in (1, 5):
        for text, answer in zip(
            prompts,
            ensemble.generate([[p] * copies for p in prompts], max_new_tokens=6),
            strict=True,
        ):
            stock = stock_answer(small, [text], lambda each: each[0], limit=6)
            assert (answer.generation, answer.truncated) == (stock.text, stock.truncated)
            assert answer.logprob == pytest.approx(sum(stock.logprobs), abs=1e-3)
    unlike = [["Q: a word\nA:", "Q: seven 7\nA:"]]
    averaged = ensemble.generate(unlike, method="avg", max_new_tokens=6)[0]
    stock = stock_answer(small, unlike[0], lambda each: each.mean(0), limit=6)
    assert averaged.generation == stock.text
    with pytest.raises(UserError, match="share no last token"):
        ensemble.generate([["Q: a word\nA:", "Q: a word"]])


def test_a_chat_template_is_used(demo, asked):
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }}{% endfor %}{{ '\nA:' }}"
    chatting = Ensemble(demo.model, tokenizer, prompt=Prompt(chat_template=True))
    answers = chatting.generate(asked[:2], max_new_tokens=3)
    assert len(answers) == 2
    with pytest.raises(UserError, match="no chat template"):
        demo.generate(asked, prompt=Prompt(chat_template=True))


def test_stops_and_what_is_extracted(demo, asked):
    """Of the scripts' own answers: test_tasks.py holds those against transformers."""
    for method in ("attention", "avg", "per_prompt"):
        whole = demo.generate(asked, method=method, stop=[], extract="all")
        cut = demo.generate(asked, method=method, stop=["Q:", "a"])
        for answer, other in zip(cut, whole, strict=True):
            ends = [other.generation.find(stop) for stop in ("Q:", "a")]
            end = min((end for end in ends if end >= 0), default=None)
            assert answer.generation == other.generation[:end]
            assert other.text == other.generation.strip()
        assert any("\n" in answer.text for answer in whole)
        first = demo.generate(asked, method=method)
        again = demo.generate(asked, method=method, stop=[])
        assert [answer.text for answer in again] == [answer.text for answer in first]


@pytest.mark.parametrize("method", ["attention", "avg", "vote", "self_consistency"])
def test_what_is_drawn_depends_on_seed_and_texts_alone(demo, asked, method):
    def texts(questions, **settings):
        answers = demo.generate(questions, method=method, temperature=1.5, **settings)
        return [answer.generation for answer in answers]

    drawn = texts(asked)
    assert texts(asked, batch_size=1) == drawn == texts(asked[::-1])[::-1]
    assert texts(asked[3:]) == drawn[3:]
    assert texts(asked, sample_seed=1) != drawn
    assert texts(asked, top_p=0.5) != drawn
    # The same question twice is drawn for twice.
    pairs = [texts([question, question]) for question in asked]
    assert any(first != second for first, second in pairs)


def test_self_consistency_draws_without_being_told(demo, asked):
    plain = demo.generate(asked, method="self_consistency", samples=3)
    told = demo.generate(asked, method="self_consistency", samples=3, temperature=0.7)
    assert [a.token_ids for a in plain] == [a.token_ids for a in told]
    seeded = demo.generate(asked, method="self_consistency", samples=3, sample_seed=4)
    assert [a.token_ids for a in plain] != [a.token_ids for a in seeded]


@pytest.mark.parametrize("method", method_names())
def test_questions_may_have_unlike_numbers_of_paraphrases(demo, asked, method):
    unlike = [paraphrases[: 1 + i % 3] for i, paraphrases in enumerate(asked)]
    together = demo.generate(unlike, method=method)
    for index, question in enumerate(unlike):
        alone = demo.generate([question], method=method)
        mine = [answer for answer in together if answer.question == index]
        assert [(a.text, a.paraphrase) for a in mine] == [(a.text, a.paraphrase) for a in alone]


BAD = {
    "a text for a list": ([["a?"], "b?"], {}, "question 1 is a text"),
    "no paraphrases": ([[]], {}, "question 0 has no paraphrase"),
    "an empty paraphrase": ([["a?", " "]], {}, "or one that is empty, no text"),
    "half a character": ([["\ud800"]], {}, "holds half a character"),
    "a number for questions": (3, {}, "give a list of paraphrases for each"),
    "a number for a question": ([3], {}, "is 3; give the list of its paraphrases"),
    "weights of each question": ([["a?", "b?"]], {"weights": [[1, 2]]}, "must be numbers"),
    "no extraction": ([["a?"]], {"extract": None}, "None is none of line"),
    "a number for stops": ([["a?"]], {"stop": 3}, "3 is no list of texts"),
    "no text": ([["a?", 3]], {}, "no text"),
    "too few weights of one": ([["a?", "b?"], ["a?"]], {"weights": (1, 1)}, "2 weights for 1"),
    "a stop that is one text": ([["a?"]], {"stop": "\n\n"}, "give a list of texts"),
    "an empty stop": ([["a?"]], {"stop": ["x", ""]}, "at least one character"),
    "a stop that is no text": ([["a?"]], {"stop": [3]}, "at least one character"),
    "no temperature": ([["a?"]], {"temperature": 0}, "temperature: 0 is not a number above 0"),
    "no top_p": ([["a?"]], {"temperature": 1, "top_p": 1.5}, "top_p: 1.5"),
    "no seed": ([["a?"]], {"temperature": 1, "sample_seed": -1}, "seed: -1"),
    "top_p of nothing": ([["a?"]], {"top_p": 0.9}, "top_p: without a temperature"),
    "a seed of nothing": ([["a?"]], {"sample_seed": 0}, "seed: without a temperature"),
    "no such extraction": ([["a?"]], {"extract": "lines"}, "'lines' is none of line"),
    "no samples": ([["a?"]], {"method": "self_consistency", "samples": 0}, "samples: 0"),
    "samples of another method": ([["a?"]], {"method": "vote", "samples": 3}, "'samples'"),
    "no such method": ([["a?"]], {"method": "mean"}, "unknown method 'mean': there is attention"),
    "no such fusion": ([["a?"]], {"fusion": "sum"}, "sum"),
    "a setting of another method": ([["a?"]], {"method": "avg", "tau": 1.0}, "no setting 'tau'"),
    "too few weights": ([["a?", "b?"]], {"weights": (1,)}, "1 weights for 2 paraphrases"),
    "weights that it has no use for": (
        [["a?"]],
        {"method": "avg", "weights": [(1,)]},
        "the method avg uses no weights",
    ),
    "a mapping for a list": ([{"question": "a?"}], {}, "question 0 is a dict"),
    "weights twice": (
        [["a?", "b?"]],
        {"weights": (1, 2), "weights_by": "entropy:1"},
        "leave one of them out",
    ),
    "weights by what it has no use for": (
        [["a?"]],
        {"method": "avg", "weights_by": "entropy:1"},
        "the method avg uses no weights",
    ),
    "weights by what is not there": (
        [["a?"]],
        {"weights_by": "luck:1"},
        "unknown weighting 'luck'",
    ),
    "weights by no number": ([["a?"]], {"weights_by": "entropy"}, "'entropy' must be written"),
    "negative weights": ([["a?", "b?"]], {"weights": (1, -1)}, "weights"),
    "weights of zero": ([["a?", "b?"]], {"weights": (0, 0)}, "weights"),
    "a long answer": ([["a?"]], {"max_new_tokens": 10**6}, "positions"),
    "no answer": ([["a?"]], {"max_new_tokens": 0}, "max_new_tokens"),
    "half a token": ([["a?"]], {"max_new_tokens": 2.5}, "2.5 is not a whole number"),
    "a tau that is no number": ([["a?"]], {"tau": float("nan")}, "finite number, not nan"),
    "no batch": ([["a?"]], {"batch_size": 0}, "batch_size"),
    "exact with joint": ([["a?"]], {"fusion": "joint", "positions": "exact"}, "exact"),
    "no such positions": ([["a?"]], {"positions": "middle"}, "middle"),
    "no such layout": ([["a?"]], {"layout": "rows"}, "rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_told_in_one_sentence(demo, name):
    questions, settings, said = BAD[name]
    with pytest.raises(UserError) as caught:
        demo.generate(questions, **settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["device", "dtype", "attention"])
def test_how_a_model_cannot_be_loaded(demo, setting):
    with pytest.raises(UserError, match=f"--{setting}: 'flash' is none of auto, "):
        Ensemble.from_pretrained("demo", **{setting: "flash"})
    with pytest.raises(UserError, match="--attention: 'flash' is none of auto, flex"):
        Ensemble(demo.model, demo.tokenizer, attention="flash")


def test_no_questions_get_no_answers(demo):
    assert demo.generate([]) == []


def test_what_a_notebook_needs_is_on_top():
    for name in self_ensemble.__all__:
        assert getattr(self_ensemble, name) is not None
    assert set(self_ensemble.__all__) <= set(dir(self_ensemble))
    assert FewShot("a?", "b").answer == "b"
    with pytest.raises(AttributeError, match="'gone'"):
        self_ensemble.gone  # noqa: B018


def test_demonstrations_are_pairs_of_texts():
    for few_shot in ([{"question": "a?", "answer": "b"}], ("a?", "b"), [("a?", None)]):
        with pytest.raises(UserError, match="few_shot holds"):
            Prompt("x", few_shot)


def test_names_of_other_methods_are_not_taken():
    for register in (self_ensemble.register_logit_method, self_ensemble.register_vote):
        for name in ("attention", "flex_attention", "per_prompt", "", "../up", 3):
            with pytest.raises(ValueError):
                register(name)
    for name in ("entropy", "a:1", "", "../up", "1"):
        with pytest.raises(ValueError):
            self_ensemble.register_weighting(name)(len)
    with pytest.raises(ValueError, match="another method"):
        self_ensemble.register_logit_method("vote")
    with pytest.raises(ValueError, match="another method"):
        self_ensemble.register_vote("avg")


@pytest.mark.parametrize("index", [-1, 3, True, None])
def test_a_vote_of_no_answer_is_told(demo, asked, index):
    VOTES.register("odd")(lambda predictions: index)
    try:
        with pytest.raises(UserError, match="must return the index of one of the 3 answers"):
            demo.generate(asked[:1], method="odd")
    finally:
        VOTES.remove("odd")


def test_results_of_an_edited_function_are_told_apart(tmp_path, monkeypatch, capsys):
    """Else a file would hold the answers of both."""
    program = """
import sys, generate
from self_ensemble import register_logit_method
@register_logit_method("mine")
def mine(logits, weights):
    return logits.log_softmax(-1).{}(1)
generate.run(generate.main, generate.parse_args(["--method", "mine", *sys.argv[1:]]))
"""
    (tmp_path / "first.py").write_text(program.format("mean"))
    (tmp_path / "edited.py").write_text(program.format("amin"))

    def flags(count):
        return ["--output_dir", str(tmp_path), "--max_samples", count]

    def run(name, count):
        monkeypatch.setattr(sys, "argv", [name, *flags(count)])
        try:
            runpy.run_path(str(tmp_path / name), run_name="__main__")
        except SystemExit as end:
            return end.code
        finally:
            LOGIT_METHODS.remove("mine")
        return 0

    # In another process, so that nothing of this one can be in what tells them apart.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "first.py", *flags("2")]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert run("first.py", "3") == 0
    assert run("edited.py", "4") == 2 and "source" in capsys.readouterr().err
