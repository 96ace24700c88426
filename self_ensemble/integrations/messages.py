"""Paraphrases of a conversation's last message: what is head, paraphrase and tail of its prompts.

    messages = [Message("system", "Name it."), Message("user", "Q1?"), Message("assistant", "A1")]
    question = Message("user", "Peru's capital? Be brief.", ("Peru's capital?", "Capital of Peru?"))
    read_messages([*messages, question], tokenizer, chat_template=False)
    # head "Name it.\\n\\nQ: Q1?\\nA: A1\\n\\nQ: ", the two paraphrases, tail " Be brief.\\nA:"

Nothing here imports torch or a toolkit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from self_ensemble.data.extraction import FIRST_LINE, Extraction
from self_ensemble.data.prompts import chat_prompt_template
from self_ensemble.data.records import FewShot
from self_ensemble.data.templates import PromptTemplate, prompt_template
from self_ensemble.integrations.contexts import MarkedContext
from self_ensemble.methods.questions import is_text
from self_ensemble.system.errors import UserError

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    role: ``system``, ``user`` or ``assistant``.
    text: what it says.
    paraphrases: of what the text asks, where it is asked in several wordings. The first of them
        stands in the text.
    """

    role: str
    text: str
    paraphrases: tuple[str, ...] | None = None


def checked_paraphrases(given: object) -> tuple[str, ...] | None:
    """What a message's metadata says.

    Raises:
        UserError: it is not a list of texts.
    """
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not given or not all(map(is_text, given)):
        raise UserError(
            f"paraphrases: {given!r} of the last user message is no list of texts that are not "
            "empty"
        )
    return tuple(given)


def read_messages(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    chat_template: bool | None = None,
    extract: Extraction = FIRST_LINE,
) -> MarkedContext:
    """What a conversation asks; a last message without paraphrases is one wording.

    Args:
        messages: the last of them is the user's.
        tokenizer: the model's own.
        chat_template: whether they are put into the model's own chat format. Otherwise they become
            the library's plain prompt: system messages its instruction, each user message with the
            answer to it a demonstration, and the last one the question. None: where the tokenizer
            has a chat template.
        extract: see `data.prompts.chat_prompt_template`.

    Raises:
        UserError: the last message is not the user's, does not hold the first paraphrase once, or
            the messages do not fit the format.
    """
    if not messages or messages[-1].role != USER:
        raise UserError("the last message is not a user message: there is nothing to answer")
    *before, last = messages
    first, *_ = paraphrases = last.paraphrases or (last.text,)
    if last.text.count(first) != 1:
        raise UserError(
            f"the last user message holds its first paraphrase {first!r} "
            f"{last.text.count(first)} times: it must stand there once, and the others are put in "
            "its place"
        )
    head, _, tail = last.text.partition(first)
    around = PromptTemplate(head, tail)
    if chat_template is None:
        chat_template = bool(getattr(tokenizer, "chat_template", None))
    if chat_template:
        told = [{"role": each.role, "content": each.text} for each in before]
        template = chat_prompt_template(tokenizer, around, extract, told)
    else:
        plain = _plain_template(before)
        template = PromptTemplate(plain.head + head, tail + plain.tail)
    return MarkedContext(
        template.head, paraphrases, template.tail, add_special_tokens=template.add_special_tokens
    )


def _plain_template(before: Sequence[Message]) -> PromptTemplate:
    """The plain prompt around the last message."""
    instruction = "\n\n".join(each.text for each in before if each.role == SYSTEM)
    shown = [each for each in before if each.role != SYSTEM]
    if [each.role for each in shown] != [USER, ASSISTANT] * (len(shown) // 2):
        raise UserError(
            "without a chat template every user message before the last one needs an assistant's "
            "answer behind it: they are the prompt's demonstrations"
        )
    pairs = zip(shown[::2], shown[1::2], strict=True)
    return prompt_template(instruction, [FewShot(q.text, a.text.strip()) for q, a in pairs])
