"""Prompts to the byte, what a run shows, and chat templates."""

from dataclasses import replace
from functools import partial

import pytest
from writing import error_of, write

from self_ensemble.data import (
    FewShot,
    PromptTemplate,
    chat_prompt_template,
    choose_template,
    construct_prompts,
    load_dataset,
    prompt_template,
)
from self_ensemble.data.extraction import parse_extraction
from self_ensemble.data.prompts import Prompt

GOOD = {"question": "q", "answer": "a"}
SHOTS = (FewShot("Capital of Peru? [MASK].", "Lima"), FewShot("[MASK] is gold’s symbol.", "Au"))


@pytest.mark.parametrize(
    "instruction, shots, expected",
    [
        (
            "Name it.",
            SHOTS,
            "Name it.\n\nQ: Capital of Peru? [MASK].\nA: Lima\n\n"
            "Q: [MASK] is gold’s symbol.\nA: Au\n\nQ: Who?\nA:",
        ),
        ("Name it.", (), "Name it.\n\nQ: Who?\nA:"),
        ("", SHOTS[:1], "Q: Capital of Peru? [MASK].\nA: Lima\n\nQ: Who?\nA:"),
        ("", (), "Q: Who?\nA:"),
    ],
)
def test_prompt_to_the_byte(instruction, shots, expected):
    template = prompt_template(instruction, shots)
    assert construct_prompts(["Who?"], template) == [expected]
    assert (template.tail, template.add_special_tokens) == ("\nA:", True)


def test_prompts_keep_order_and_text():
    template = PromptTemplate("h\n", "\u00e9")
    assert construct_prompts([" b", "a ", ""], template) == [
        "h\n b\u00e9",
        "h\na \u00e9",
        "h\n\u00e9",
    ]


def test_choose_template(tmp_path):
    own = load_dataset(str(write(tmp_path / "own.jsonl", [GOOD])))
    with_shots = replace(own, few_shot=SHOTS, instruction="Own.")
    path = write(tmp_path / "shots.jsonl", [{"question": f"q{i}", "answer": "a"} for i in range(3)])

    def head(instruction, few_shot_file, num_few_shot):
        return choose_template(
            with_shots,
            instruction=instruction,
            few_shot_file=few_shot_file,
            num_few_shot=num_few_shot,
        ).head

    assert head(None, None, 5) == prompt_template("Own.", SHOTS).head
    assert head("", None, 1) == prompt_template("", SHOTS[:1]).head
    assert head("Do.", path, 2) == "Do.\n\nQ: q0\nA: a\n\nQ: q1\nA: a\n\nQ: "
    assert head("Do.", path, 0) == "Do.\n\nQ: "
    assert head("Own.", None, None) == prompt_template("Own.", SHOTS[:5]).head
    choose = partial(choose_template, own, instruction=None, few_shot_file=None)
    assert "demonstrations; give --few_shot FILE" in error_of(choose, num_few_shot=1)
    for number in (None, 0):
        assert choose(num_few_shot=number).head == prompt_template(own.instruction, ()).head


CHAT_TEMPLATES = {
    "trims, begins with BOS": (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "no BOS": (
        "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
        "{% if not add_generation_prompt %}!{% endif %}"
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "?": 1}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="?")


@pytest.mark.parametrize("chat", CHAT_TEMPLATES.values(), ids=CHAT_TEMPLATES)
@pytest.mark.parametrize("paraphrase", ["Who?", " 'a' & <b> {{x}} \\", "[MASK]"])
def test_chat_template_equals_the_tokenizers_own_rendering(tokenizer, chat, paraphrase):
    tokenizer.chat_template = chat
    plain = prompt_template("  Name it.", SHOTS)
    template = chat_prompt_template(tokenizer, plain)
    message = {"role": "user", "content": plain.render(paraphrase)}
    assert template.render(paraphrase) == tokenizer.apply_chat_template(
        [message], tokenize=False, add_generation_prompt=True
    )
    assert not template.add_special_tokens
    assert template.head.startswith("<s>") == ("bos_token" in chat)


def test_chat_template_switches(tokenizer):
    tokenizer.chat_template = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
        "{{ date_string }} {{ messages[0].content }}"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    template = chat_prompt_template(tokenizer, prompt_template("", ()))
    assert template.render("Who?") == "26 Jul 2024 Q: Who?\nA:<think></think>"


# What reasoning models' templates end with: always open; by one switch or another.
OPEN = "{{ messages[0].content }}{{ '<think>\n' }}"
REOPENED = "{{ messages[0].content }}<think></think><think>"
SWITCHED = (
    "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
OTHER_SWITCH = (
    "{% if thinking is not defined %}{% set thinking = false %}{% endif %}"
    "{{ messages[0].content }}{% if thinking %}<think>{% else %}</think>{% endif %}"
)


@pytest.mark.parametrize(
    "chat, extract, tail",
    [
        (OPEN, "after:</think>", "<think>\n"),
        (OPEN, "last_number", "<think>\n"),
        (OPEN, "all", "<think>\n"),
        (OPEN, "regex:(?s)</think>(.*)", "<think>\n"),
        (OPEN, "line", None),
        (REOPENED, "after:</think>", "<think></think><think>"),
        (REOPENED, "line", None),
        # What has a switch thinks where the thought's end is looked for, and nowhere else.
        (SWITCHED, "after:</think>", ""),
        (SWITCHED, "last_number", "<think>\n\n</think>\n\n"),
        (SWITCHED, "line", "<think>\n\n</think>\n\n"),
        (OTHER_SWITCH, "after:</think>", "<think>"),
        (OTHER_SWITCH, "after:Answer:", "</think>"),
        (OTHER_SWITCH, "line", "</think>"),
    ],
)
def test_thoughts(tokenizer, chat, extract, tail):
    tokenizer.chat_template = chat
    plain, extract = prompt_template("Do.", ()), parse_extraction(extract)
    for template in (
        partial(chat_prompt_template, tokenizer, plain),
        partial(Prompt("Do.", chat_template=True).template, tokenizer),
    ):
        if tail is None:
            sentence = error_of(template, extract)
            assert "--extract after:</think>" in sentence and "--max_new_tokens" in sentence
            assert "--stop none" in sentence
        else:
            assert template(extract).render("Who?") == f"Do.\n\nQ: Who?\nA:{tail}"


@pytest.mark.parametrize(
    "chat, named",
    [
        (None, "no chat template"),
        ("{{ messages[0].role }}", "0 times"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "2 times"),
        ("{{ messages[0].content | escape }}", "alters"),
        ("{{ messages[0].content | tojson }}", "alters"),
        ("{{ messages[0].content | upper }}", "alters"),
        ("{{ raise_exception('system first') }}", "system first"),
        ("{{ messages[0].content + 1 }}", "single user message"),
        (OPEN, "nothing closes"),
        (REOPENED, "nothing closes"),
    ],
)
def test_bad_chat_template(tokenizer, chat, named):
    tokenizer.chat_template = chat
    sentence = error_of(chat_prompt_template, tokenizer, prompt_template("Do.", ()))
    assert named in sentence and "--chat_template" in sentence
