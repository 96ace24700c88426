"""What Inspect is told, checked and in our words: model arguments, generation ones, messages.

Needs the package ``inspect_ai``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
)

from self_ensemble.generation.config import GenerationConfig, make_sampling
from self_ensemble.integrations.arguments import flags_named
from self_ensemble.integrations.messages import Message, checked_paraphrases
from self_ensemble.methods.base import Method
from self_ensemble.methods.config import SELF_CONSISTENCY_SAMPLING
from self_ensemble.methods.self_consistency import SelfConsistency
from self_ensemble.system.errors import UserError

# Of a `GenerateConfig`, what is read here.
READ = {"max_tokens", "stop_seqs", "temperature", "top_p", "seed", "logprobs"}
# What Inspect itself does, or what is about a server or tools, of which there are none.
ELSEWHERE = {
    "adaptive_connections",
    "attempt_timeout",
    "batch",
    "cache",
    "cache_prompt",
    "fail_on_refusal",
    "internal_tools",
    "max_connections",
    "max_retries",
    "max_tool_output",
    "parallel_tool_calls",
    "reasoning_history",
    "stream_idle_timeout",
    "system_message",
    "timeout",
}
# What else may be said where it changes nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0.0,),
    "logit_bias": ({},),
    "num_choices": (1,),
    "presence_penalty": (0.0,),
    "top_k": (0, -1),
    "top_logprobs": (0,),
}


class ModelArgumentError(PrerequisiteError, UserError):
    """A mistake before anything is evaluated: Inspect prints the sentence, without a traceback."""


@contextmanager
def told_by_inspect() -> Iterator[None]:
    """Inside, a mistake of the user's is one that Inspect knows as such."""
    try:
        yield
    except UserError as error:
        raise ModelArgumentError(str(error)) from error


def model_args_named() -> AbstractContextManager[None]:
    """Inside, a sentence that names a flag of the scripts names Inspect's argument instead."""
    return flags_named(
        ("--model:", "model:"),
        ("--max_new_tokens", "max_tokens"),
        ("--chat_template", "chat_template"),
        ("--stop none", "no stop_seqs"),
    )


def check_types(*, fusion_tau: Any, chat_template: Any, **texts: Any) -> None:
    """Raises UserError where an argument has another type: Inspect reads them as YAML.

    texts: those that are texts, by their names.
    """
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise UserError(f"{name}: {value!r} is not one text")
    if fusion_tau is not None and (
        isinstance(fusion_tau, bool) or not isinstance(fusion_tau, int | float)
    ):
        raise UserError(f"fusion_tau: {fusion_tau!r} is not a number")
    if chat_template not in (None, True, False):
        raise UserError(f"chat_template: {chat_template!r} is neither true nor false")


def checked_weights(weights: Any) -> list[float] | None:
    """As numbers: of ``-M weights=2,1,1`` Inspect makes texts.

    Raises:
        UserError: they are no list of numbers.
    """
    if weights is None:
        return None
    try:
        if isinstance(weights, list | tuple):
            return [float(weight) for weight in weights]
    except (TypeError, ValueError):
        pass
    raise UserError(f"weights: {weights!r} is no list of numbers; write weights=2,1,1")


def generation_config(
    told: GenerateConfig, *, method: Method, batch_size: int | None
) -> GenerationConfig:
    """What a task or the command line says of generation.

    Args:
        told: its ``max_tokens`` is set. Without ``stop_seqs`` only end-of-sequence and the limit
            end an answer, and without a temperature above 0 the likeliest token is taken.
        method: `SelfConsistency` draws where no temperature is given, too.
        batch_size: questions at a time; None takes what fits.

    Raises:
        UserError: it says something that is not done here.
    """
    given = told.model_dump(exclude_none=True)
    for name in sorted(given.keys() - READ - ELSEWHERE):
        if given[name] not in NEUTRAL.get(name, ()):
            raise UserError(
                f"{name}={given[name]!r} is not done by self-ensemble: leave it out (there is "
                f"{', '.join(sorted(READ))})"
            )
    draws = isinstance(method, SelfConsistency)
    temperature = told.temperature if told.temperature or draws else None
    top_p = None if told.top_p == 1 and not temperature else told.top_p
    sampling = make_sampling(
        temperature=temperature,
        top_p=top_p,
        seed=told.seed if draws or temperature is not None else None,
        usual=SELF_CONSISTENCY_SAMPLING if draws else None,
    )
    stop: Sequence[str] = told.stop_seqs or ()
    assert told.max_tokens is not None, "Inspect asks ModelAPI.max_tokens()"
    return GenerationConfig(told.max_tokens, batch_size, tuple(stop), sampling)


def plain_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages as texts; of the last one also its paraphrases, which its metadata holds.

    Raises:
        UserError: a message calls a tool, is a tool's, or holds something that is no text.
    """
    found = [Message(_role(each), _text(each)) for each in messages]
    if messages and isinstance(messages[-1], ChatMessageUser):
        told = (messages[-1].metadata or {}).get("paraphrases")
        found[-1] = Message(found[-1].role, found[-1].text, checked_paraphrases(told))
    return found


def _role(message: ChatMessage) -> str:
    calls = isinstance(message, ChatMessageAssistant) and message.tool_calls
    if calls or not isinstance(message, ChatMessageSystem | ChatMessageUser | ChatMessageAssistant):
        raise UserError("a message is a tool's or calls one: self-ensemble has no tools")
    return str(message.role)


def _text(message: ChatMessage) -> str:
    """Without a thought, as chat templates leave out those of earlier turns."""
    content = message.content
    for part in [] if isinstance(content, str) else content:
        if not isinstance(part, ContentText | ContentReasoning):
            raise UserError(f"a message holds content of the type {part.type}: give text alone")
    return message.text
