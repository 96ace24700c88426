"""The model API self-ensemble, asked through the real Inspect, and held against `Ensemble`."""

import json
import logging
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")

import anyio
from inspect_ai import Epochs, Task, eval
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    get_model,
    get_model_info,
)
from inspect_ai.solver import generate, prompt_template
from inspect_ai.tool import ToolInfo
from small import INSTRUCTION, QUESTIONS

from self_ensemble import Ensemble, Prompt, UserError
from self_ensemble.data.templates import PromptTemplate
from self_ensemble.integrations import inspect_ai_registry  # noqa: F401  registers
from self_ensemble.integrations.inspect_ai import SelfEnsembleAPI

ROOT = Path(__file__).resolve().parents[2]
ASKED = [tuple(row["paraphrases"]) for row in QUESTIONS]
PLAIN = Prompt(INSTRUCTION)
LIMIT = 8


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("INSPECT_DISPLAY", "none")


@pytest.fixture(scope="module")
def ensemble(small):
    return Ensemble(small.model, small.tokenizer, prompt=PLAIN)


@pytest.fixture(scope="module")
def api(small):
    return SelfEnsembleAPI(str(small.folder))


def model_of(small, **arguments):
    return get_model(f"self-ensemble/{small.folder}", **arguments)


def messages(paraphrases, text=None, told=INSTRUCTION):
    metadata = {"paraphrases": list(paraphrases)}
    question = ChatMessageUser(content=text or paraphrases[0], metadata=metadata)
    return [ChatMessageSystem(content=told), question]


def outputs(api, conversations, config=None):
    """The output or the UserError of each, asked at the same time."""
    found = [None] * len(conversations)
    told = GenerateConfig(**({"max_tokens": LIMIT} | (config or {})))

    async def one(index):
        try:
            found[index] = await api.generate(conversations[index], [], "auto", told)
        except UserError as error:
            found[index] = error

    async def together():
        async with anyio.create_task_group() as group:
            for index in range(len(conversations)):
                group.start_soon(one, index)

    anyio.run(together)
    return found


def refused(api, conversation, config=None, told=""):
    [error] = outputs(api, [conversation], config)
    assert isinstance(error, UserError) and told in str(error), error


def task(**settings):
    samples = [
        Sample(id=row["uuid"], input=messages(row["paraphrases"]), target=row["answers"])
        for row in QUESTIONS
    ]
    return Task(dataset=MemoryDataset(samples), **settings)


@pytest.fixture
def passes(api, monkeypatch):
    """How many questions each request to the engine had."""
    seen, ask = [], api._engine.generate

    def counted(request, **settings):
        seen.append(len(request.questions))
        return ask(request, **settings)

    monkeypatch.setattr(api._engine, "generate", counted)
    return seen


# ---- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "method", "settings"),
    [
        ({}, "attention", {}),
        ({"fusion_tau": 0.5, "positions": "left"}, "attention", {"tau": 0.5, "positions": "left"}),
        ({"weights": ["2", "1", "0.5", "1"]}, "attention", {"weights": [2, 1, 0.5, 1]}),
        ({"method": "avg", "weights_by": None}, "avg", {}),
        ({"method": "vote"}, "vote", {}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_evaluation_gives_the_answers_of_the_library(
    small, ensemble, arguments, method, settings
):
    model = model_of(small, batch_size=3, **arguments)
    config = GenerateConfig(max_tokens=LIMIT, stop_seqs=["\n"])
    [log] = eval(task(solver=generate(), config=config), model=model)
    assert log.status == "success", log.error
    expected = ensemble.generate(
        ASKED, method=method, max_new_tokens=LIMIT, stop=["\n"], **settings
    )
    for sample, answer in zip(log.samples, expected, strict=True):
        output = sample.output
        assert output.completion == answer.generation
        assert output.metadata["logprob"] == pytest.approx(answer.logprob, abs=1e-4)
        assert output.stop_reason == ("max_tokens" if answer.truncated else "stop")
        assert output.metadata["paraphrases"] == 4


def test_without_stop_seqs_only_the_limit_and_the_end_stop(api, ensemble):
    expected = ensemble.generate(ASKED, max_new_tokens=LIMIT, stop=[])
    found = outputs(api, [messages(each) for each in ASKED])
    assert [each.completion for each in found] == [each.generation for each in expected]
    assert any("\n" in each.completion for each in found)


def test_a_solver_s_template_is_around_every_paraphrase(small, ensemble):
    solver = [prompt_template("{prompt}\nBe brief."), generate()]
    model = model_of(small, num_paraphrases=2)
    [log] = eval(task(solver=solver, config=GenerateConfig(max_tokens=4)), model=model, limit=2)

    class Around(Prompt):
        def template(self, tokenizer, extract=None):
            plain = super().template(tokenizer)
            return PromptTemplate(plain.head, "\nBe brief." + plain.tail)

    asked = [texts[:2] for texts in ASKED[:2]]
    expected = ensemble.generate(asked, max_new_tokens=4, stop=[], prompt=Around(INSTRUCTION))
    assert [each.output.completion for each in log.samples] == [e.generation for e in expected]


def test_a_chat_template_and_demonstrations(small, tmp_path):
    for file in small.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<a>"
    (tmp_path / "chat_template.jinja").write_text(template)
    chat = Ensemble.from_pretrained(str(tmp_path), prompt=Prompt(INSTRUCTION, chat_template=True))
    expected = chat.generate(ASKED[:3], max_new_tokens=LIMIT, stop=[])
    text = INSTRUCTION + "\n\nQ: {}\nA:"
    asked = [messages(each, text.format(each[0]))[1:] for each in ASKED[:3]]
    found = outputs(SelfEnsembleAPI(str(tmp_path)), asked)
    assert [each.completion for each in found] == [each.generation for each in expected]

    shots = [("Peru?", "Lima"), ("Mali?", "Bamako")]
    plain = Ensemble.from_pretrained(str(tmp_path), prompt=Prompt(INSTRUCTION, shots))
    expected = plain.generate(ASKED[2:4], max_new_tokens=LIMIT, stop=[])
    shown = [
        message
        for question, answer in shots
        for message in (ChatMessageUser(content=question), ChatMessageAssistant(content=answer))
    ]
    asked = [[system, *shown, last] for system, last in map(messages, ASKED[2:4])]
    found = outputs(SelfEnsembleAPI(str(tmp_path), chat_template=False), asked)
    assert [each.completion for each in found] == [each.generation for each in expected]


def test_one_wording_is_told_of(small, ensemble, caplog):
    api = SelfEnsembleAPI(str(small.folder))
    asked = [ChatMessageSystem(content=INSTRUCTION), ChatMessageUser(content=ASKED[0][1])]
    with caplog.at_level(logging.WARNING):
        [found, _] = outputs(api, [asked, asked])
    [expected] = ensemble.generate([ASKED[0][1:2]], max_new_tokens=LIMIT, stop=[])
    assert found.completion == expected.generation and found.metadata["paraphrases"] == 1
    assert [r.getMessage() for r in caplog.records].count(caplog.messages[-1]) == 1
    assert "one wording" in caplog.messages[-1]


def test_usage_and_logprobs(api, small, ensemble):
    [found] = outputs(api, [messages(ASKED[0])], {"logprobs": True, "stop_seqs": ["\n"]})
    [answer] = ensemble.generate(ASKED[:1], max_new_tokens=LIMIT, stop=["\n"])
    prompts = [f"{INSTRUCTION}\n\nQ: {text}\nA:" for text in ASKED[0]]
    lengths = [len(small.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    usage = found.usage
    assert (usage.input_tokens, found.input_context_tokens) == (sum(lengths), max(lengths))
    assert usage.output_tokens == len(answer.token_ids)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    logprobs = found.choices[0].logprobs.content
    assert len(logprobs) == len(answer.token_ids)
    assert sum(each.logprob for each in logprobs) == pytest.approx(answer.logprob, abs=1e-4)
    origin = SelfEnsembleAPI(str(small.folder), method="origin")
    assert outputs(origin, [messages(ASKED[0])])[0].usage.input_tokens == lengths[0]


# ---- together -----------------------------------------------------------------------------------


def test_messages_that_wait_are_one_pass(api, passes):
    conversations = [messages(each) for each in ASKED]
    together = outputs(api, conversations)
    assert passes == [len(ASKED)]
    alone = [outputs(api, [each])[0] for each in conversations]
    assert [e.completion for e in together] == [e.completion for e in alone]


def test_one_that_cannot_be_answered_fails_alone(api, passes):
    long = messages([ASKED[0][0] * 200, ASKED[0][1]])
    *found, error = outputs(api, [*map(messages, ASKED[:3]), long])
    assert isinstance(error, UserError) and "a smaller max_tokens" in str(error)
    expected = outputs(api, [messages(each) for each in ASKED[:3]])
    assert [e.completion for e in found] == [e.completion for e in expected]
    assert outputs(api, [long])[0].args == error.args


def test_who_comes_a_little_later_is_in_the_same_pass(api, passes, monkeypatch):
    monkeypatch.setattr("self_ensemble.integrations.inspect_ai.COLLECTING", 0.3)
    told = GenerateConfig(max_tokens=2)

    async def scene():
        async with anyio.create_task_group() as group:
            for texts in ASKED[:2]:
                group.start_soon(api.generate, messages(texts), [], "auto", told)
                await anyio.sleep(0.005)

    anyio.run(scene)
    assert passes == [2]


def test_who_goes_away_leaves_the_others(api, passes):
    told, found = GenerateConfig(max_tokens=LIMIT), []

    async def ask():
        found.append(await api.generate(messages(ASKED[1]), [], "auto", told))

    async def scene():
        async with anyio.create_task_group() as group:
            with anyio.move_on_after(0.01):
                await api.generate(messages(ASKED[0]), [], "auto", told)
            group.start_soon(ask)

    anyio.run(scene)
    assert found and passes == [1]


def test_a_fault_of_the_program_is_nobody_else_s(api, monkeypatch):
    ask, failed = api._engine.generate, []

    def broken(request, **settings):
        if not failed:
            failed.append(True)
            raise ZeroDivisionError
        return ask(request, **settings)

    monkeypatch.setattr(api._engine, "generate", broken)
    told, found = GenerateConfig(max_tokens=LIMIT), []

    async def one(texts):
        try:
            found.append(await api.generate(messages(texts), [], "auto", told))
        except ZeroDivisionError as error:
            found.append(error)

    async def together():
        async with anyio.create_task_group() as group:
            for texts in ASKED[:3]:
                group.start_soon(one, texts)

    anyio.run(together)
    assert [isinstance(each, ZeroDivisionError) for each in found].count(True) == 1
    assert len(found) == 3 and not api._waiting


# ---- draws, and Inspect's cache -----------------------------------------------------------------


def drawn(model, epochs=2, limit=3, seed=5):
    config = GenerateConfig(max_tokens=12, temperature=1.5, top_p=0.95, seed=seed)
    settings = {"solver": generate(), "config": config, "epochs": Epochs(epochs)}
    [log] = eval(task(**settings), model=model, limit=limit)
    return {(each.id, each.epoch): each.output.completion for each in log.samples}


def test_epochs_are_drawn_independently_and_again_alike(small):
    model = model_of(small)
    first = drawn(model)
    assert len(set(first.values())) == 6
    assert drawn(model) == first
    alone = drawn(model, limit=1)
    assert alone == {key: first[key] for key in alone}
    assert drawn(model, seed=6) != first


def test_equal_messages_are_drawn_independently(small):
    config = {"temperature": 1.5, "max_tokens": 12}
    asked = [messages(ASKED[0])] * 3
    found = [each.completion for each in outputs(SelfEnsembleAPI(str(small.folder)), asked, config)]
    assert len(set(found)) == 3
    api = SelfEnsembleAPI(str(small.folder))
    one_by_one = [outputs(api, asked[:1], config)[0].completion for _ in asked]
    assert sorted(found) == sorted(one_by_one)


def test_self_consistency_draws_with_the_seed(small, ensemble):
    api = SelfEnsembleAPI(str(small.folder), method="self_consistency", samples=3)
    [a] = outputs(api, [messages(ASKED[0])], {"seed": 1, "max_tokens": 12})
    [b] = outputs(
        SelfEnsembleAPI(str(small.folder), method="self_consistency", samples=3),
        [messages(ASKED[0])],
        {"seed": 2, "max_tokens": 12},
    )
    assert a.completion != b.completion


def test_a_method_s_answers_are_not_cached_as_another_s(small):
    def told(**arguments):
        model = model_of(small, memoize=False, **arguments)
        calls = []

        async def ask():
            original = model.api.generate

            async def seen(**given):
                calls.append(given)
                return await original(**given)

            model.api.generate = seen
            config = GenerateConfig(max_tokens=LIMIT)
            return await model.generate(messages(ASKED[3]), config=config, cache=True)

        return anyio.run(ask).metadata["method"], len(calls)

    assert told() == ("attention", 1)
    assert told(method="avg") == ("avg", 1)
    assert told() == ("attention", 0)
    assert told(fusion_tau=0.25)[1] == told(num_paraphrases=2)[1] == 1


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"top_k": 5}, "top_k=5"),
        ({"num_choices": 2}, "num_choices=2"),
        ({"frequency_penalty": 0.5}, "frequency_penalty=0.5"),
        ({"logit_bias": {3: 1.0}}, "logit_bias"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs=3"),
        ({"reasoning_effort": "high"}, "reasoning_effort='high'"),
        ({"top_p": 0.5}, "top_p: without a temperature nothing is drawn"),
        ({"top_p": 2, "temperature": 1}, "top_p: 2"),
        ({"stop_seqs": [""]}, "stop: ''"),
    ],
)
def test_generation_that_is_not_done(api, config, told):
    refused(api, messages(ASKED[0]), config, told)


def test_generation_that_changes_nothing(api):
    neutral = {"top_k": -1, "num_choices": 1, "presence_penalty": 0.0, "seed": 3, "top_p": 1.0}
    neutral |= {"temperature": 0.0, "max_retries": 2, "max_connections": 7, "cache_prompt": True}
    [plain, same] = (outputs(api, [messages(ASKED[1])], config)[0] for config in ({}, neutral))
    assert plain.completion == same.completion


def test_messages_that_are_not_read(api):
    image = ContentImage(image="data:image/png;base64,AAAA")
    user = ChatMessageUser(content=[ContentText(text="See:"), image])
    refused(api, [user], told="type image")
    refused(api, [ChatMessageTool(content="42"), *messages(ASKED[0])], told="no tools")
    refused(api, messages(ASKED[0], text="Something else."), told="0 times")
    refused(api, messages([*ASKED[0], ""], ASKED[0][0]), told="no list of texts")

    async def with_tools():
        tool = ToolInfo(name="add", description="adds")
        await api.generate(messages(ASKED[0]), [tool], "auto", GenerateConfig(max_tokens=2))

    with pytest.raises(UserError, match="no tools"):
        anyio.run(with_tools)


def test_texts_in_parts_are_texts(api):
    system, last = messages(ASKED[2])
    parts = ChatMessageUser(content=[ContentText(text=last.text)], metadata=last.metadata)
    [whole, same] = outputs(api, [[system, last], [system, parts]])
    assert whole.completion == same.completion


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"colour": "red"}, "unknown argument 'colour' of self-ensemble: there is attention, b"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"method": "mean"}, "unknown method 'mean'"),
        ({"method": "per_prompt"}, "per_prompt"),
        ({"method": ["avg", "max"]}, "not one text"),
        ({"fusion_tau": "much"}, "fusion_tau: 'much'"),
        ({"method": "avg", "fusion_tau": 1}, "has no setting 'tau'"),
        ({"weights": "2"}, "weights: '2'"),
        ({"weights": ["2", "x"]}, "weights"),
        ({"chat_template": "yes"}, "chat_template"),
        ({"chat_template": 3}, "chat_template"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_paraphrases": 0}, "num_paraphrases"),
        ({"dtype": "float8"}, "float8"),
        ({"base_url": "http://somewhere"}, "asks no server"),
    ],
)
def test_model_arguments_that_cannot_be_had(small, arguments, told):
    with pytest.raises(UserError, match=told.replace("[", "\\[")) as caught:
        model_of(small, **arguments)
    assert "--" not in str(caught.value)
    assert isinstance(caught.value, PrerequisiteError)  # Inspect prints its sentence alone
    assert caught.value.message == str(caught.value)


def test_fewer_paraphrases_than_asked_for(small):
    api = SelfEnsembleAPI(str(small.folder), num_paraphrases=5)
    refused(api, messages(ASKED[0]), told="num_paraphrases: 5 are asked for")


# ---- registration -------------------------------------------------------------------------------


def test_the_entry_point_is_there_and_waits_for_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"]["inspect_ai"].items()
    EntryPoint(name, value, "inspect_ai").load()
    code = f"import sys, {value}; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], cwd=ROOT, capture_output=True, text=True
    )
    assert json.loads(done.stdout) is False, done.stderr


def test_inspect_does_not_load_the_model_again(small, monkeypatch):
    model, loaded = model_of(small), []
    monkeypatch.setattr("self_ensemble.integrations.inspect_ai.load_model", loaded.append)
    assert get_model_info(str(model)).context_length == 600
    assert not loaded
