"""The model type self-ensemble, asked through the real lm-evaluation-harness.

Contexts without a separator are held against the harness's own model type hf, those with
paraphrases against the scripts and `Ensemble`.
"""

import json
import logging
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import lm_eval.caching.cache
import pandas as pd
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import Registry, model_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from small import run_script

import flex_attention_generate
from self_ensemble import Ensemble, Prompt, UserError, WholePrompts
from self_ensemble import lm_eval as launcher
from self_ensemble.integrations.lm_eval import SelfEnsembleLM
from self_ensemble.integrations.lm_eval_arguments import generation_config

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "lm_eval"


def read_lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


QUESTIONS, SHOTS = read_lines(DATA / "questions.jsonl"), read_lines(DATA / "demonstrations.jsonl")
INSTRUCTION = "Give the missing fact in as few words as possible."
DEMO = str(ROOT / "demo" / "model")
LINE = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch, tmp_path_factory):
    """The tasks name their files from there; what the harness keeps is kept elsewhere.

    What it tells of the machine takes a second each time.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setattr(lm_eval.caching.cache, "PATH", str(tmp_path_factory.mktemp("requests")))


@pytest.fixture(scope="module", autouse=True)
def quiet_libraries(tmp_path_factory):
    from datasets import config

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    before, config.HF_DATASETS_CACHE = config.HF_DATASETS_CACHE, tmp_path_factory.mktemp("data")
    yield
    config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def manager():
    return TaskManager(include_path=str(DATA), include_defaults=False)


@pytest.fixture(scope="module")
def demo():
    return SelfEnsembleLM(dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def ensemble():
    return Ensemble.from_pretrained("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tiny(small):
    """A random model whose tokenizer puts a BOS in front, as both model types have it."""
    folder = str(small.folder)
    return SelfEnsembleLM(folder, batch_size=3), HFLM(folder, device="cpu", batch_size=3)


def demo_with(**arguments):
    return SelfEnsembleLM(**{"dtype": "float32", "batch_size": 4, **arguments})


def generation(context, arguments=LINE, **given):
    return Instance("generate_until", {}, (context, dict(arguments)), 0, **given)


def scoring(context, continuation, idx=0, doc_id=None):
    metadata = ("task", doc_id, 1)
    return Instance("loglikelihood", {}, (context, continuation), idx, metadata=metadata)


def rolling(text):
    return Instance("loglikelihood_rolling", {}, (text,), 0)


def marked(paraphrases, head="", separator="␞"):
    return f"{head}Q: {separator.join(paraphrases)}\nA:"


def evaluated(model, manager, tasks, **settings):
    """(metrics of each task, responses to each request of it)."""
    found = simple_evaluate(
        model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **settings
    )
    metrics = {
        task: {name: value for name, value in each.items() if "," in name}
        for task, each in found["results"].items()
    }
    return metrics, {t: [s["resps"] for s in each] for t, each in found["samples"].items()}


# ---- contexts without a separator: the model type hf --------------------------------------------

PLAIN = {
    "dataset_path": "json",
    "dataset_kwargs": {
        "data_files": {
            "test": "docs/lm_eval/questions.jsonl",
            "demonstrations": "docs/lm_eval/demonstrations.jsonl",
        }
    },
    "test_split": "test",
    "fewshot_split": "demonstrations",
    "description": "Say what is asked.\n\n",
    "doc_to_text": "Q: {{ paraphrases[0] }}\nA:",
}
CHOICE_METRICS = ("acc", "acc_norm", "acc_mutual_info", "brier_score")
PLAIN_TASKS = [
    PLAIN
    | {
        "task": "plain_answers",
        "output_type": "generate_until",
        "doc_to_target": "{{ answers[0] }}",
        "generation_kwargs": {"until": ["\n", "é?"], "max_gen_toks": 7},
        "metric_list": [{"metric": "exact_match"}],
    },
    PLAIN
    | {
        "task": "plain_choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [
            {"metric": m} for m in ("acc", "acc_norm", "acc_mutual_info", "brier_score")
        ],
    },
    PLAIN
    | {
        "task": "plain_text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{ paraphrases | join(' ') }}",
        "metric_list": [{"metric": m} for m in ("word_perplexity", "bits_per_byte")],
    },
]


def test_without_a_separator_every_metric_and_response_is_hfs(tiny, manager):
    ours, theirs = (evaluated(m, manager, PLAIN_TASKS, limit=4, num_fewshot=3) for m in tiny)
    assert ours == theirs
    assert {len(each) for each in ours[1].values()} == {4}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"add_bos_token": False},
        {"add_bos_token": True},
        {"max_length": 24},  # contexts are truncated from the left
        {"prefix_token_id": 5, "logits_cache": False},
    ],
)
def test_hfs_arguments_mean_what_they_mean_there(small, arguments):
    requests = [
        [scoring(context, continuation) for context, continuation in pairs]
        for pairs in [
            [("", " Lima"), ("Q: Peru?\nA: ", "Lima"), ("<bos>Q: Peru", "?\nA"), ("a\n", " b c")],
            [(f"Q: {row['paraphrases'][0]}\nA:", " The Hague") for row in QUESTIONS[:3]],
        ]
    ]
    generated = [generation(f"Q: {place}\nA:") for place in ("Mali", "Peru and Chad")]
    texts = [
        Instance("loglikelihood_rolling", {}, (row["paraphrases"][1],), 0) for row in QUESTIONS[:2]
    ]
    given = {"batch_size": 2} | arguments
    ours, theirs = (
        kind(str(small.folder), device="cpu", **given) for kind in (SelfEnsembleLM, HFLM)
    )
    for asked in requests:
        assert ours.loglikelihood(asked) == theirs.loglikelihood(asked)
    assert ours.generate_until(generated) == theirs.generate_until(generated)
    assert ours.loglikelihood_rolling(texts) == theirs.loglikelihood_rolling(texts)


def test_plain_and_marked_requests_in_one_call_keep_their_places(demo):
    one, several = QUESTIONS[3]["paraphrases"][:1], QUESTIONS[3]["paraphrases"][:3]
    contexts = [marked(several), marked(one), marked(several[::-1]), marked(one)]
    together = demo.generate_until([generation(context) for context in contexts])
    assert together == [demo.generate_until([generation(context)])[0] for context in contexts]
    choices = [(context, choice) for choice in (" Oslo", " Rome") for context in contexts]
    scored = demo.loglikelihood([scoring(*pair) for pair in choices])
    for pair, (value, greedy) in zip(choices, scored, strict=True):
        [(alone, is_greedy)] = demo.loglikelihood([scoring(*pair)])
        assert value == pytest.approx(alone, abs=1e-4) and greedy == is_greedy


def test_one_marked_wording_is_what_hf_says_of_the_plain_prompt(tiny):
    ours, theirs = tiny
    for wording in ("Capital of Peru?", "What is Lima"):
        head, tail = "Say.\n\nQ: ", "\nA:"
        lone, plain = f"{head}␞␞{wording}␞␞{tail}", head + wording + tail
        arguments = {"until": ["\n", "zz"], "max_gen_toks": 12}
        answers = [
            m.generate_until([generation(c, arguments)]) for m, c in ((ours, lone), (theirs, plain))
        ]
        assert answers[0] == answers[1]
        for continuation in (" Lima", "Lima", " a b", "\nx"):
            for space in ("", " "):
                [(value, greedy)] = ours.loglikelihood([scoring(lone + space, continuation)])
                [expected] = theirs.loglikelihood([scoring(plain + space, continuation)])
                assert (value, greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1])


def test_one_marked_wording_has_the_bos_that_hf_gives_it(small, tiny):
    found = []
    for given in ({"add_bos_token": False}, {"add_bos_token": True}):
        ours, theirs = (
            kind(str(small.folder), device="cpu", **given) for kind in (SelfEnsembleLM, HFLM)
        )
        [(value, _)] = ours.loglikelihood([scoring("Q: ␞␞Peru?␞␞\nA:", " Lima")])
        [(expected, _)] = theirs.loglikelihood([scoring("Q: Peru?\nA:", " Lima")])
        assert value == pytest.approx(expected, abs=1e-4)
        found.append(value)
    [(usual, _)] = tiny[0].loglikelihood([scoring("Q: ␞␞Peru?␞␞\nA:", " Lima")])
    assert usual == pytest.approx(found[1], abs=1e-4) != pytest.approx(found[0], abs=1e-2)


# ---- contexts with paraphrases: what the scripts answer -----------------------------------------

TASKS = ["demo_answers", "demo_choices", "demo_yes_no"]
METHODS = [
    {},
    {"fusion_tau": 0, "weights_by": "entropy:1"},
    {"fusion": "joint", "layout": "concat", "positions": "sequential"},
    {"weights": [1, 2, 0.5, 1, 1]},
    {"method": "weighted_avg"},
    {"method": "vote"},
]


def api_settings(arguments):
    named = dict(arguments)
    if "fusion_tau" in named:
        named["tau"] = named.pop("fusion_tau")
    return named


@pytest.fixture(scope="module")
def built(manager):
    """The example tasks' requests with five demonstrations, those of two questions."""
    loaded = manager.load(TASKS)["tasks"]
    requests = {}
    for name, task in loaded.items():
        task.set_config(key="num_fewshot", value=5)
        task.set_fewshot_seed(seed=0)
        task.build_all_requests(limit=2, rank=0, world_size=1)
        requests[name] = task.instances
    return requests


def responses(model, built):
    """(texts, log-likelihoods, whether they are greedy) of the built requests of each task."""
    scored = [model.loglikelihood(built[name]) for name in TASKS[1:]]
    values = [value for each in scored for value, _ in each]
    return model.generate_until(built[TASKS[0]]), values, [g for each in scored for _, g in each]


@pytest.mark.parametrize("arguments", METHODS, ids=lambda each: "-".join(map(str, each.values())))
def test_the_example_tasks_answer_as_the_ensemble_does(ensemble, built, arguments):
    settings, rows = api_settings(arguments), QUESTIONS[:2]
    texts, values, greedy = responses(demo_with(**arguments), built)
    questions = [row["paraphrases"] for row in rows]
    prompt = Prompt(INSTRUCTION, [(row["paraphrases"][0], row["answers"][0]) for row in SHOTS])
    answers = ensemble.generate(questions, prompt=prompt, stop=["\n"], extract="all", **settings)
    assert texts == [answer.generation for answer in answers]
    choices = [row["choices"] for row in rows]
    scored = ensemble.loglikelihood(questions, choices, prompt=prompt, **settings)
    shown = "Question: {}\nAnswer: {}\nDoes it fit, yes or no?"
    head = "Say whether the answer fits the question.\n\n"
    for row in SHOTS:
        said = "yes" if row["is_answer"] else "no"
        head += f"{shown.format(row['paraphrases'][0], row['candidate'])} {said}\n\n"
    whole = [[head + shown.format(p, row["candidate"]) for p in row["paraphrases"]] for row in rows]
    yes_no = [["no", "yes"]] * len(rows)
    scored += ensemble.loglikelihood(whole, yes_no, prompt=WholePrompts(), **settings)
    assert values == pytest.approx([value for each in scored for value in each.sum], abs=1e-4)
    assert greedy == [value for each in scored for value in each.greedy]


def test_the_example_task_answers_as_the_script_does(demo, manager, tmp_path):
    shots = tmp_path / "shots.jsonl"
    shutil.copy(ROOT / "demo" / "few_shot.jsonl", shots)
    told = ("--dataset", DATA / "questions.jsonl", "--model", "demo", "--device", "cpu")
    prompt = ("--instruction", INSTRUCTION, "--few_shot", shots, "--num_few_shot", 5)
    where = ("--output_dir", tmp_path, "--max_samples", 12)
    assert run_script(flex_attention_generate, *told, *prompt, *where) == 0
    [file] = tmp_path.glob("*/*/*.feather")
    metrics, found = evaluated(demo, manager, ["demo_answers"], num_fewshot=5, limit=12)
    written = pd.read_feather(file)
    assert [answer.strip() for [[answer]] in found["demo_answers"]] == list(written["prediction"])
    right = [
        p.lower() in map(str.lower, a)
        for p, a in zip(written.prediction, written.answers, strict=True)
    ]
    assert metrics["demo_answers"]["exact_match,answer"] == pytest.approx(sum(right) / 12)


def test_votes_compare_what_is_told(ensemble):
    """The fifth and the second question are ones where it matters."""
    prompt, asked = Prompt(INSTRUCTION), [QUESTIONS[4]["paraphrases"], QUESTIONS[1]["paraphrases"]]
    contexts = [marked(paraphrases, f"{INSTRUCTION}\n\n") for paraphrases in asked]
    choices = ["Rome", f"the city of {QUESTIONS[4]['answers'][0]} and others"]
    scored, answered = [], []
    for norm, extract in (("sum", "line"), ("bytes", r"regex:\w(\w)")):
        vote = demo_with(method="vote", choice_norm=norm, extract=extract)
        scored.append(vote.loglikelihood([scoring(contexts[0], f" {c}") for c in choices]))
        answered += vote.generate_until([generation(contexts[1])])
        [expected] = ensemble.loglikelihood(
            asked[:1], [choices], prompt=prompt, method="vote", choice_norm=norm
        )
        assert [v for v, _ in scored[-1]] == pytest.approx(expected.sum, abs=1e-4)
        [answer] = ensemble.generate(
            asked[1:],
            prompt=prompt,
            method="vote",
            extract=extract,
            stop=["\n"],
            max_new_tokens=LINE["max_gen_toks"],
        )
        assert answered[-1] == answer.generation
    assert scored[0] != scored[1] and answered[0] != answered[1]


def test_the_batch_size_changes_no_answer(built):
    texts, values, greedy = responses(demo_with(batch_size=1), built)
    for size in (16, "auto"):
        other_texts, other_values, other_greedy = responses(demo_with(batch_size=size), built)
        assert (other_texts, other_greedy) == (texts, greedy)
        assert other_values == pytest.approx(values, abs=1e-4)


def test_demonstrations_of_each_questions_own_change_no_answer(demo, ensemble, manager):
    """The harness's usual sampler draws them for every question: then no head is shared."""
    task = manager.task_index["demo_answers"].cfg | {"task": "drawn_shots"}
    task["fewshot_config"] = {k: v for k, v in task["fewshot_config"].items() if k != "sampler"}
    results = simple_evaluate(
        model=demo, tasks=[task], task_manager=manager, num_fewshot=3, limit=3, bootstrap_iters=0
    )
    contexts = [sample["arguments"][0][0] for sample in results["samples"]["drawn_shots"]]
    assert len({context.rpartition("Q: ")[0] for context in contexts}) == 3
    for context, sample in zip(contexts, results["samples"]["drawn_shots"], strict=True):
        head, _, wordings = context.removesuffix("\nA:").rpartition("Q: ")
        shots = [tuple(shot.split("\nA: ")) for shot in head.split("\n\nQ: ")[1:]]
        shots = [(question, answer.strip()) for question, answer in shots]
        prompt = Prompt(INSTRUCTION, shots)
        [answer] = ensemble.generate([wordings.split("␞")], prompt=prompt, stop=["\n"])
        assert sample["resps"] == [[answer.generation]]


# ---- chat templates -----------------------------------------------------------------------------

CHAT = (
    "<bos>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def chat(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(small.folder, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return str(folder)


@pytest.mark.parametrize(
    "settings", [{}, {"num_fewshot": 2}, {"num_fewshot": 2, "fewshot_as_multiturn": False}]
)
def test_with_a_chat_template_the_paraphrases_are_in_the_last_message(chat, manager, settings):
    model = SelfEnsembleLM(chat, batch_size=3)
    results = simple_evaluate(
        model=model,
        tasks=["demo_answers", "demo_choices"],
        task_manager=manager,
        apply_chat_template=True,
        limit=3,
        bootstrap_iters=0,
        gen_kwargs={"max_gen_toks": 6},
        **settings,
    )
    samples = results["samples"]
    prompts = []
    for sample, row in zip(samples["demo_answers"], QUESTIONS, strict=False):
        context = sample["arguments"][0][0]
        assert context.startswith("<bos>[system] ") and context.endswith("\nA:[end]\n[assistant] ")
        joined = "␞".join(row["paraphrases"])
        assert context.count(joined) == 1
        prompts.append([context.replace(joined, each) for each in row["paraphrases"]])
    asked = Ensemble.from_pretrained(chat, device="cpu", prompt=WholePrompts(False))
    answers = asked.generate(prompts, stop=["\n"], max_new_tokens=6, extract="all")
    assert [s["resps"] for s in samples["demo_answers"]] == [[[a.generation]] for a in answers]
    choices = [[s["arguments"][i][1] for i in range(4)] for s in samples["demo_choices"]]
    stripped = [[prompt.rstrip() for prompt in each] for each in prompts]
    moved = [[" " + choice for choice in each] for each in choices]
    scored = asked.loglikelihood(stripped, moved)
    for sample, each in zip(samples["demo_choices"], scored, strict=True):
        assert [v for [(v, _)] in sample["resps"]] == pytest.approx(each.sum, abs=1e-4)


def test_a_chat_template_on_plain_contexts_is_hfs(chat, manager):
    both = SelfEnsembleLM(chat, batch_size=3), HFLM(chat, device="cpu", batch_size=3)
    ours, theirs = (
        evaluated(m, manager, PLAIN_TASKS[:2], apply_chat_template=True, num_fewshot=2, limit=3)
        for m in both
    )
    assert ours == theirs


# ---- what generation is told --------------------------------------------------------------------


def test_generation_ends_at_until_and_at_the_limit(demo):
    context = marked(QUESTIONS[0]["paraphrases"])
    [free] = demo.generate_until([generation(context, {"until": [], "max_gen_toks": 8})])
    assert len(demo.tok_encode(free, add_special_tokens=False)) <= 8
    stop = free[len(free) // 2 :][:2]
    [cut] = demo.generate_until([generation(context, {"until": stop, "max_gen_toks": 8})])
    assert cut == free[: free.index(stop)]
    [short] = demo.generate_until([generation(context, {"until": None, "max_new_tokens": 1})])
    assert free.startswith(short) and short != free


def test_requests_of_unlike_arguments_are_each_answered_by_their_own(demo):
    context = marked(QUESTIONS[1]["paraphrases"])
    each = [{"until": ["\n"], "max_gen_toks": n} for n in (1, 6, 2)]
    together = demo.generate_until([generation(context, given) for given in each])
    assert together == [demo.generate_until([generation(context, given)])[0] for given in each]
    assert len(set(together)) > 1


def test_draws_depend_on_seed_and_context_alone(demo):
    drawn = {
        "until": ["\n"],
        "max_gen_toks": 6,
        "do_sample": True,
        "temperature": 3.0,
        "top_p": 0.9,
    }
    contexts = [marked(row["paraphrases"]) for row in QUESTIONS[:4]]
    answers = demo.generate_until([generation(c, drawn) for c in contexts])
    again = demo.generate_until([generation(c, drawn) for c in contexts[::-1]])[::-1]
    alone = [demo.generate_until([generation(c, drawn)])[0] for c in contexts]
    assert answers == again == alone
    other = demo_with(sample_seed=1).generate_until([generation(c, drawn) for c in contexts])
    assert other != answers
    greedy = demo.generate_until([generation(c, drawn | {"do_sample": False}) for c in contexts])
    assert greedy != answers
    narrow = [generation(c, drawn | {"top_p": 1e-6}) for c in contexts]
    assert demo.generate_until(narrow) == greedy
    # As a task's `repeats` asks: several draws for one question.
    assert len(set(demo.generate_until([generation(contexts[0], drawn) for _ in range(6)]))) > 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"top_k": 5, "do_sample": True, "temperature": 1}, "top_k=5"),
        ({"do_sample": True}, "temperature: 0.0 is not a number above 0"),
        ({"do_sample": True, "temperature": 1, "top_p": 0}, "top_p: 0 is not"),
        ({"max_gen_toks": 0}, "max_gen_toks: 0 is not"),
        ({"until": [""]}, "until: '' is not a text of at least one character"),
        ({"max_gen_toks": 100_000}, "more than the model's"),
    ],
)
def test_generation_arguments_that_cannot_be_had(demo, given, told):
    with pytest.raises(UserError) as error:
        demo.generate_until([generation(marked(["a", "b"]), given)])
    assert told in str(error.value) and "\n" not in str(error.value)
    assert "max_new_tokens" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({}, None),
        ({"temperature": 0.8}, 0.8),
        ({"do_sample": False, "temperature": 0.8, "top_p": 0.5}, None),
        ({"do_sample": True, "temperature": 0.8}, 0.8),
        ({"temperature": 0}, None),
    ],
)
def test_whether_tokens_are_drawn_is_as_the_harness_has_it_everywhere(given, temperature):
    """lm-evaluation-harness issue 3505: model types had it each in its own way."""
    config = generation_config(given, max_gen_toks=9, batch_size=None, seed=4)
    drawn = config.sampling
    assert (None if drawn is None else (drawn.temperature, drawn.seed)) == (
        None if temperature is None else (temperature, 4)
    )
    assert config.max_new_tokens == 9 and config.stop == ()


def test_generation_arguments_that_change_nothing_are_taken(demo):
    context = marked(QUESTIONS[0]["paraphrases"])
    neutral = LINE | {"num_beams": 1, "top_k": None, "repetition_penalty": 1.0, "temperature": 0.0}
    assert demo.generate_until([generation(context, neutral)]) == demo.generate_until(
        [generation(context)]
    )


def test_what_follows_a_thought_is_the_answer(demo):
    context = marked(QUESTIONS[0]["paraphrases"])
    [free] = demo.generate_until([generation(context)])
    end = free.strip()[1:3]
    thinking = demo_with(think_end_token=end, enable_thinking=True)
    assert thinking.generate_until([generation(context)]) == [free.split(end)[-1].lstrip()]
    with pytest.raises(UserError, match="not what follows a thought"):
        thinking.loglikelihood([scoring(context, " Peru")])


# ---- caches -------------------------------------------------------------------------------------


def count_passes(monkeypatch, model):
    """The names of the engine's calls."""
    calls = []
    for name in ("generate", "score"):
        method = getattr(model._engine, name)

        def counted(*args, _name=name, _method=method, **settings):
            calls.append(_name)
            return _method(*args, **settings)

        monkeypatch.setattr(model._engine, name, counted)
    return calls


def test_a_response_cache_is_used_and_changes_nothing(demo, manager, tmp_path, monkeypatch):
    limited = {"num_fewshot": 1, "limit": 2}
    plain = evaluated(demo, manager, TASKS[:2], **limited)
    cache = str(tmp_path / "answers")
    calls = count_passes(monkeypatch, demo)
    assert evaluated(demo, manager, TASKS[:2], use_cache=cache, **limited) == plain
    assert sorted(set(calls)) == ["generate", "score"]
    calls.clear()
    assert evaluated(demo, manager, TASKS[:2], use_cache=cache, **limited) == plain
    assert not calls
    demo.set_cache_hook(lm_eval.api.model.CacheHook(None))


def test_what_was_answered_before_a_run_broke_off_is_in_the_cache(tmp_path):
    model = demo_with(batch_size=1)
    cached = CachingLM(model, str(tmp_path / "answers.db"))
    requests = [generation(marked([w, w + "!"])) for w in ("a", "b", "c c c")]

    def broken(request, batch_size=None, ask=model._engine.generate):
        batches = ask(request, batch_size=batch_size, batches=[[0], [1], [2]])
        yield next(batches)
        raise KeyboardInterrupt

    model._engine.generate = broken
    with pytest.raises(KeyboardInterrupt):
        cached.generate_until(requests)
    assert len(cached.dbdict) == 2  # whose answers they are, and one of them


def test_a_response_cache_of_other_arguments_is_refused(demo, tmp_path):
    cache = str(tmp_path / "answers.db")
    context = marked(["a", "b"])
    CachingLM(demo, cache).generate_until([generation(context)])
    CachingLM(demo_with(batch_size=16), cache)
    for arguments, named in [
        ({"method": "avg"}, "method"),
        ({"fusion_tau": 0}, "method"),
        ({"num_paraphrases": 2}, "num_paraphrases"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"max_length": 99, "sample_seed": 3}, "max_length, sample_seed"),
    ]:
        with pytest.raises(UserError, match=f"made with another {named}; name another file"):
            CachingLM(demo_with(**arguments), cache)
    demo.set_cache_hook(lm_eval.api.model.CacheHook(None))


def test_a_response_cache_of_another_model_type_is_refused(tiny, tmp_path):
    ours, theirs = tiny
    cache = str(tmp_path / "answers.db")
    CachingLM(theirs, cache).loglikelihood([scoring("Q: a\nA:", " b")])
    with pytest.raises(UserError, match="answers of another model type"):
        CachingLM(ours, cache)
    theirs.set_cache_hook(lm_eval.api.model.CacheHook(None))


def test_a_vote_is_not_taken_among_some_of_the_choices(tmp_path):
    """What a run that was killed has left in a cache are some of a question's choices."""
    vote = demo_with(method="vote")
    requests = [scoring(marked(["a", "b"]), f" {c}", i, doc_id=7) for i, c in enumerate("xyz")]
    cached = CachingLM(vote, str(tmp_path / "answers.db"))
    answers = cached.loglikelihood(requests)
    assert cached.loglikelihood(requests) == answers
    for lost, told in ((2, "a single continuation follows"), (1, "holds some of them")):
        del cached.dbdict[lm_eval.api.model.hash_args("loglikelihood", requests[lost].args)]
        with pytest.raises(UserError, match=told):
            cached.loglikelihood(requests)


def test_equal_contexts_of_two_questions_do_not_share_their_choices():
    vote, context = demo_with(method="weighted_avg"), marked(QUESTIONS[0]["paraphrases"])
    first = [scoring(context, f" {c}", i, doc_id=0) for i, c in enumerate(("Sweden", "Peru"))]
    second = [scoring(context, f" {c}", i, doc_id=1) for i, c in enumerate(("Mali", "Chad"))]
    together = vote.loglikelihood(first + second)
    alone = vote.loglikelihood(first) + vote.loglikelihood(second)
    assert [v for v, _ in together] == pytest.approx([v for v, _ in alone], abs=1e-4)


def test_built_requests_may_be_cached(demo, manager):
    limited = {"num_fewshot": 2, "limit": 3, "cache_requests": True}
    first = evaluated(demo, manager, ["demo_choices"], **limited)
    assert list(Path(lm_eval.caching.cache.PATH).iterdir())
    assert evaluated(demo, manager, ["demo_choices"], **limited) == first


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"pretrained": "nowhere"}, "pretrained: 'nowhere' is no folder"),
        ({"method": "mean"}, "unknown method 'mean'"),
        ({"method": "per_prompt"}, "method: per_prompt answers every paraphrase"),
        ({"method": "avg", "fusion_tau": 1}, "the method avg has no setting 'tau'"),
        ({"method": "weighted_avg", "weights": [1, 2]}, "weights: for the method attention"),
        ({"weights": 5}, "weights: 5 is no list"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"weights_by": "entropy"}, "entropy"),
        ({"fusion": "medium"}, "medium"),
        ({"positions": "up"}, "unknown positions 'up'"),
        ({"num_paraphrases": 0}, "num_paraphrases: 0"),
        ({"num_paraphrases": True}, "num_paraphrases: True"),
        ({"num_paraphrases": "2"}, "num_paraphrases: '2'"),
        ({"separator": 3}, "separator: 3"),
        ({"separator": " "}, "separator: ' '"),
        ({"dtype": "float8"}, "dtype: 'float8'"),
        ({"device": "tpu"}, "device: 'tpu'"),
        ({"device": "cuda:7"}, "device: cuda:7 is not there"),
        ({"attention": "fast"}, "attention: 'fast'"),
        ({"revision": "main"}, "revision main"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"batch_size": "many"}, "batch_size: many"),
        ({"sample_seed": -1}, "seed: -1"),
        ({"extract": "word"}, "'word' is none of"),
        ({"choice_norm": "max"}, "choice_norm: 'max'"),
        ({"trust_remote_code": True}, "trust_remote_code: code"),
        (
            {"parallelize": True},
            "unknown argument 'parallelize' of self-ensemble: there is",
        ),
        ({"think_end_token": 7}, "think_end_token: give its text"),
    ],
)
def test_arguments_that_cannot_be_had_are_one_sentence(arguments, told):
    with pytest.raises(UserError) as error:
        SelfEnsembleLM(**arguments)
    assert told in str(error.value)
    assert "\n" not in str(error.value) and "--" not in str(error.value).replace("--apply", "")


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        SelfEnsembleLM()


def test_requests_that_cannot_be_answered_are_one_sentence(demo):
    fewer = demo_with(num_paraphrases=3)
    with pytest.raises(UserError, match="num_paraphrases: 3 are asked for"):
        fewer.generate_until([generation(marked(["a", "b"]))])
    with pytest.raises(UserError, match="holds the separator"):
        demo.loglikelihood([scoring("Q: a\nA:", " b␞c")])
    with pytest.raises(UserError, match="know one wording only"):
        demo.loglikelihood_rolling([rolling("a␞b")])
    with pytest.raises(UserError, match="a continuation is empty"):
        demo.loglikelihood([scoring(marked(["a", "b"]), "")])
    with pytest.raises(UserError, match="scores no continuations"):
        demo_with(method="self_consistency").loglikelihood([scoring(marked(["a", "b"]), " c")])
    with pytest.raises(UserError, match="share no last token"):
        demo.generate_until([generation("Say ␞␞a␞b␞␞")])


@pytest.mark.parametrize("device", [None, "cuda", "cuda:0", "cpu"])
def test_the_gpu_that_the_harness_names_by_itself_is_no_wish(device):
    """Its command line says cuda:0 where nobody says anything, and hf takes the CPU then."""
    assert demo_with(device=device).device.type == "cpu"


def test_num_paraphrases_takes_the_first_ones(demo):
    wordings = QUESTIONS[4]["paraphrases"]
    three = demo_with(num_paraphrases=3)
    [answer] = three.loglikelihood([scoring(marked(wordings), " Rome")])
    [expected] = demo.loglikelihood([scoring(marked(wordings[:3]), " Rome")])
    assert answer == expected != demo.loglikelihood([scoring(marked(wordings), " Rome")])[0]


def test_another_separator(demo):
    other, wordings = demo_with(separator="||"), QUESTIONS[2]["paraphrases"]
    contexts = marked(wordings, separator="||"), marked(wordings)
    answers = [
        m.generate_until([generation(c)]) for m, c in zip((other, demo), contexts, strict=True)
    ]
    assert answers[0] == answers[1]


# ---- how it is found ----------------------------------------------------------------------------


def test_the_launcher_registers_by_name_and_hands_over(monkeypatch):
    registry, handed = Registry("model"), []
    monkeypatch.setattr(lm_eval.api.registry, "model_registry", registry)
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: handed.append(registry))
    launcher.main()
    launcher.main()
    assert handed == [registry, registry] and registry.get("self-ensemble") is SelfEnsembleLM


def test_importing_the_module_registers(monkeypatch):
    assert model_registry.get("self-ensemble") is SelfEnsembleLM


def test_the_entry_point_names_the_model_type():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [(name, target)] = project["entry-points"]["lm_eval.models"].items()
    assert name == "self-ensemble"
    assert EntryPoint(name, target, "lm_eval.models").load() is SelfEnsembleLM
    assert target == launcher.MODEL_TYPE


def test_the_launcher_leaves_the_harness_its_own_model_types():
    """In a new process: here they are registered by what was imported."""
    code = (
        "from self_ensemble.lm_eval import register\n"
        "register()\n"
        "from lm_eval.api.registry import model_registry\n"
        "print('hf' in model_registry, 'self-ensemble' in model_registry)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "True True\n", done.stderr


def test_without_the_package_the_launcher_says_which(monkeypatch):
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        launcher.main()
    assert "needs the package lm_eval: pip install -r requirements-lm-eval.txt" in str(error.value)
    assert (ROOT / "requirements-lm-eval.txt").is_file()


# ---- the examples -------------------------------------------------------------------------------


def test_the_examples_are_the_demos():
    asked = pd.read_parquet(ROOT / "demo" / "questions.parquet").set_index("uuid")
    chosen = pd.read_parquet(ROOT / "demo" / "choices.parquet").set_index("uuid")
    for row in QUESTIONS:
        question, choices = asked.loc[row["uuid"]], chosen.loc[row["uuid"]]
        assert row["paraphrases"] == list(question["paraphrases"])[:5]
        assert row["answers"] == list(question["answers"])
        assert row["choices"] == list(choices["choices"])
        assert row["right"] == choices["answer_index"]
        assert row["is_answer"] == (row["candidate"] == row["choices"][row["right"]])
    shown = [
        json.loads(line) for line in (ROOT / "demo" / "few_shot.jsonl").read_text().splitlines()
    ]
    assert [(s["paraphrases"], s["answers"]) for s in SHOTS] == [
        ([s["question"]], [s["answer"]]) for s in shown
    ]
    assert all(s["choices"][s["right"]] == s["answers"][0] for s in SHOTS)
    assert all(s["is_answer"] == (s["candidate"] in s["answers"]) for s in SHOTS)


def test_the_results_say_what_was_asked(demo):
    info = demo.get_model_info()
    assert info["self_ensemble"]["method"]["tau"] == 1 and info["model_dtype"].is_floating_point
    json.dumps(info["self_ensemble"])


def test_a_task_without_paraphrases_is_told_of(caplog):
    """Whoever forgets the join would take hf's answers for fused ones."""
    model = demo_with()
    model.generate_until([generation("Q: Peru?\nA:")] * 2)
    assert "no context so far holds the separator" in caplog.text
    caplog.clear()
    model.generate_until([generation(marked(["a", "b"])), generation("Q: Peru?\nA:")])
    model.loglikelihood([scoring("", " Peru")])
    assert not caplog.text
    assert model.get_model_info()["self_ensemble_requests"] == {"fused": 1, "plain": 4}


def test_the_model_is_as_it_was(demo):
    before = demo.model.config._attn_implementation
    demo.generate_until([generation(marked(["a", "b"]))])
    assert demo.model.config._attn_implementation == before == "sdpa"
