"""Conversations whose last message has paraphrases: what is head, paraphrase and tail."""

import pytest

from self_ensemble.data.templates import prompt_template
from self_ensemble.integrations.messages import Message, checked_paraphrases, read_messages
from self_ensemble.system.errors import UserError

PARAPHRASES = ("Peru's capital?", "Capital of Peru?", "Which city rules Peru?")
SYSTEM = Message("system", "Name it.")
SHOT = [Message("user", "Capital of Mali?"), Message("assistant", " Bamako\n")]


class Chat:
    """A tokenizer with a chat template."""

    chat_template = "there is one"

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt, **others):
        assert add_generation_prompt and not tokenize
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def asked(text=PARAPHRASES[0], paraphrases=PARAPHRASES):
    return Message("user", text, paraphrases)


def prompts(context):
    return [context.head + paraphrase + context.tail for paraphrase in context.paraphrases]


def test_without_a_chat_template_it_is_the_plain_prompt():
    context = read_messages([SYSTEM, *SHOT, asked()], object())
    [shot] = [("Capital of Mali?", "Bamako")]
    expected = f"Name it.\n\nQ: {shot[0]}\nA: {shot[1]}\n\nQ: {{}}\nA:"
    assert prompts(context) == [expected.format(paraphrase) for paraphrase in PARAPHRASES]
    assert context.add_special_tokens


def test_a_question_alone_has_no_instruction():
    context = read_messages([asked()], object())
    assert prompts(context) == [prompt_template("", []).render(each) for each in PARAPHRASES]


def test_what_a_solver_puts_around_the_question_is_around_every_paraphrase():
    text = f"Think.\n{PARAPHRASES[0]}\nBe brief."
    context = read_messages([asked(text)], object())
    assert prompts(context) == [f"Q: Think.\n{each}\nBe brief.\nA:" for each in PARAPHRASES]


def test_a_chat_template_gets_all_messages():
    context = read_messages([SYSTEM, *SHOT, asked(f"{PARAPHRASES[0]} Now!")], Chat())
    before = "<system>Name it.<user>Capital of Mali?<assistant> Bamako\n<user>"
    assert prompts(context) == [f"{before}{each} Now!<assistant>" for each in PARAPHRASES]
    assert not context.add_special_tokens
    assert prompts(read_messages([asked()], Chat(), chat_template=False))[1].startswith("Q: Cap")


def test_a_message_without_paraphrases_is_one_wording():
    context = read_messages([Message("user", "Who?")], object())
    assert prompts(context) == ["Q: Who?\nA:"]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "not a user message"),
        ([asked(), Message("assistant", "Li")], "not a user message"),
        ([asked("Capital of Chad?")], "0 times"),
        ([asked(PARAPHRASES[0] * 2)], "2 times"),
        ([SHOT[0], asked()], "assistant's answer behind it"),
        ([SHOT[1], SHOT[0], asked()], "assistant's answer behind it"),
    ],
)
def test_what_cannot_be_asked(messages, told):
    with pytest.raises(UserError, match=told):
        read_messages(messages, object())


def test_a_template_that_refuses_a_system_message():
    class Strict(Chat):
        def apply_chat_template(self, messages, **others):
            raise ValueError("no system role")

    with pytest.raises(UserError, match="refuses these messages: no system role"):
        read_messages([SYSTEM, asked()], Strict())
    with pytest.raises(UserError, match="refuses a single user message: no system role"):
        read_messages([asked()], Strict())
    with pytest.raises(UserError, match="has no chat template"):
        read_messages([asked()], object(), chat_template=True)


@pytest.mark.parametrize("given", ["one text", [], ["a", ""], ["a", 1], [" "], {"a": 1}])
def test_paraphrases_are_texts_in_a_list(given):
    with pytest.raises(UserError, match="no list of texts"):
        checked_paraphrases(given)


def test_paraphrases_may_be_missing():
    assert checked_paraphrases(None) is None
    assert checked_paraphrases(["a", "b"]) == ("a", "b")
