"""The model API ``self-ensemble`` of Inspect: a message in several wordings, fused.

    python -m self_ensemble.inspect_ai eval docs/inspect_ai/demo_answers.py \\
        --model self-ensemble/demo -M method=attention -M dtype=float32

The paraphrases stand in the metadata of a sample's last user message. Inspect is an optional
dependency: importing this needs the package ``inspect_ai``.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelInfo,
    ModelOutput,
    ModelUsage,
    set_model_info,
)
from inspect_ai.solver._task_state import sample_state
from inspect_ai.tool import ToolChoice, ToolInfo

from self_ensemble.data.extraction import parse_extraction
from self_ensemble.data.records import compact_json, question_uuid
from self_ensemble.data.templates import PromptTemplate
from self_ensemble.generation.attaching import make_engine
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.generation.decode import answer_text
from self_ensemble.integrations import INSPECT_AI_NAME
from self_ensemble.integrations.arguments import check_method_arguments
from self_ensemble.integrations.contexts import MarkedContext, batches, grouped
from self_ensemble.integrations.inspect_ai_arguments import (
    check_types,
    checked_weights,
    generation_config,
    model_args_named,
    plain_messages,
    told_by_inspect,
)
from self_ensemble.integrations.messages import read_messages
from self_ensemble.methods.base import Asked, Outcome, asking
from self_ensemble.methods.names import ORIGINAL_WORDING, make_method
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model, load_model
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

# How long the first of several messages waits for the others, in seconds. Those that come while the
# model computes are together anyway.
COLLECTING = 0.05
# Where nobody says, as Inspect's own model API hf has it.
MAX_TOKENS = 2048


@dataclass(eq=False)
class Waiting:
    """A question that is asked, and what came of it.

    uuid: what draws depend on, with the seed.
    """

    context: MarkedContext
    config: GenerationConfig
    uuid: str
    outcome: Outcome | None = None
    error: UserError | None = None

    @property
    def done(self) -> bool:
        return self.outcome is not None or self.error is not None


class SelfEnsembleAPI(ModelAPI):
    """A model that answers messages by fusing their paraphrases.

    Messages that wait at the same time are answered in one pass of the engine.

    Args:
        model_name: what ``--model`` of the scripts takes: an alias, a hub id, a folder, a .gguf
            file.
        base_url, api_key: Inspect's; there is no server.
        config: Inspect's; what counts comes with each message.
        method: see `Ensemble.generate`; not ``per_prompt``, which has several answers.
        layout, positions, fusion, fusion_tau, weights, weights_by: of the method, see
            `methods.config.AttentionFusionConfig`.
        samples: of ``self_consistency``.
        extract: what of a generation votes compare, see `data.extraction`; what is returned is all
            of it.
        num_paraphrases: of a message, the first ones; None: all.
        chat_template: see `messages.read_messages`.
        revision, device, dtype, attention: see `models.config.ModelConfig`.
        batch_size: questions at a time; None: what fits.

    Raises:
        UserError: an argument is unknown or cannot be had.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        method: str = "attention",
        layout: str | None = None,
        positions: str | None = None,
        fusion: str | None = None,
        fusion_tau: float | None = None,
        weights: Sequence[float] | None = None,
        weights_by: str | None = None,
        samples: int | None = None,
        extract: str = "line",
        num_paraphrases: int | None = None,
        chat_template: bool | None = None,
        revision: str | None = ModelConfig.revision,
        device: str = ModelConfig.device,
        dtype: str = ModelConfig.dtype,
        attention: str = ModelConfig.attention,
        batch_size: int | None = None,
        **others: Any,
    ):
        with told_by_inspect(), model_args_named():
            _check_others(others, base_url)
            check_types(
                method=method,
                layout=layout,
                positions=positions,
                fusion=fusion,
                fusion_tau=fusion_tau,
                weights_by=weights_by,
                extract=extract,
                chat_template=chat_template,
                device=device,
                dtype=dtype,
                attention=attention,
            )
            weights = checked_weights(weights)
            check_method_arguments(method=method, num_paraphrases=num_paraphrases, weights=weights)
            GenerationConfig(batch_size=batch_size)
            settings = {
                "layout": layout,
                "positions": positions,
                "fusion": fusion,
                "tau": fusion_tau,
                "weights": weights,
                "weights_by": weights_by,
                "samples": samples,
            }
            self._method = make_method(method, **settings)
            self._extract = parse_extraction(extract)
            source = find_model(
                ModelConfig(
                    name=model_name,
                    revision=None if revision is None else str(revision),
                    device=device,
                    dtype=dtype,
                    attention=attention,
                )
            )
            model, self._tokenizer = load_model(source)
            self._extract.check_shown(self._tokenizer)
            self._engine = make_engine(model, self._tokenizer, attention=attention)
        identity = {
            "model": source.fingerprint,
            "dtype": str(source.dtype).removeprefix("torch."),
            "method": method,
            "extract": extract,
            "num_paraphrases": num_paraphrases,
            "chat_template": chat_template,
            **{name: value for name, value in settings.items() if value is not None},
        }
        # Inspect's cache tells answers apart by the model's name, its URL and the messages, but not
        # by model arguments: without this, one method would be given another's answers.
        super().__init__(model_name, f"{INSPECT_AI_NAME}:{compact_json(identity)}", api_key)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # Inspect would load the model a second time to ask it its canonical name.
        set_model_info(f"{INSPECT_AI_NAME}/{model_name}", ModelInfo(context_length=limit))
        self._method_name = method
        self._num_paraphrases = num_paraphrases
        self._chat_template = chat_template
        self._batch_size = batch_size
        self._waiting: list[Waiting] = []
        self._computing = anyio.Lock()
        self._times_asked: Counter[tuple[str | None, str]] = Counter()
        self._fused: bool | None = None  # whether a message had paraphrases; None: none came yet

    # ---- what Inspect asks ----------------------------------------------------------------------

    def max_tokens(self) -> int:
        return MAX_TOKENS

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """The answer to the last message.

        Raises:
            UserError: something is asked for that is not done here, or what the method raises.
        """
        if tools:
            raise UserError("self-ensemble has no tools: take a solver without them")
        with model_args_named():
            context = self._read(input)
            told = generation_config(config, method=self._method, batch_size=self._batch_size)
            waiting = Waiting(context, told, self._uuid(context, told))
            outcome = await self._answered(waiting)
        return self._output(waiting, outcome, logprobs=bool(config.logprobs))

    # ---- our side -------------------------------------------------------------------------------

    def _read(self, messages: Sequence[ChatMessage]) -> MarkedContext:
        plain = plain_messages(messages)
        context = read_messages(
            plain, self._tokenizer, chat_template=self._chat_template, extract=self._extract
        )
        fused = bool(plain[-1].paraphrases)
        if not fused and self._fused is None:
            logger.warning(
                "the last user message has no metadata 'paraphrases': it is asked in one wording"
            )
        self._fused = fused or bool(self._fused)
        count, there = self._num_paraphrases, len(context.paraphrases)
        if count is not None and fused and there < count:
            raise UserError(
                f"num_paraphrases: {count} are asked for, and the message of "
                f"{context.paraphrases[0]!r} has {there}"
            )
        return replace(context, paraphrases=context.paraphrases[:count])

    def _uuid(self, context: MarkedContext, config: GenerationConfig) -> str:
        """What tells a message apart from others: what it says, its epoch, and how often it came.

        So epochs are drawn independently, and a sample that is run again is drawn as before.
        """
        state = sample_state()
        asked = compact_json([context.head, *context.paraphrases, context.tail])
        key = None if state is None else state.uuid, asked
        self._times_asked[key] += config.sampling is not None
        epoch = 1 if state is None else state.epoch
        return question_uuid(compact_json([asked, epoch, self._times_asked[key]]))

    async def _answered(self, waiting: Waiting) -> Outcome:
        """What the method says, asked together with whatever else is waiting.

        One caller at a time computes, for all that wait; the others find their answer there.
        """
        self._waiting.append(waiting)
        try:
            async with self._computing:
                if not waiting.done:
                    await anyio.sleep(COLLECTING)
                    together, self._waiting = self._waiting, []
                    try:
                        await anyio.to_thread.run_sync(self._answer_all, together)
                    finally:  # after a fault of the program's the others ask for themselves
                        undone = [each for each in together if not each.done]
                        self._waiting = undone + self._waiting
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
        if waiting.error is not None:
            raise waiting.error
        assert waiting.outcome is not None
        return waiting.outcome

    def _answer_all(self, together: Sequence[Waiting]) -> None:
        for group in grouped(together, lambda each: each.config):
            for template, members, texts in batches(group, lambda each: each.context):
                self._answer(template, members, texts)

    def _answer(
        self, template: PromptTemplate, members: Sequence[Waiting], texts: Sequence[tuple[str, ...]]
    ) -> None:
        """Of questions that are asked together one that cannot be answered fails alone."""
        asked = Asked(
            engine=self._engine,
            template=template,
            questions=texts,
            uuids=[each.uuid for each in members],
            ask=asking(self._engine),
            config=members[0].config,
            extract=self._extract,
        )
        try:
            for outcome in self._method.answer(asked):
                members[outcome.question].outcome = outcome
        except UserError as error:
            if len(members) == 1:
                members[0].error = error
                return
            for member, paraphrases in zip(members, texts, strict=True):
                if not member.done:
                    self._answer(template, [member], [paraphrases])

    def _output(self, waiting: Waiting, outcome: Outcome, *, logprobs: bool) -> ModelOutput:
        answer = outcome.answers[0]
        read, longest = self._prompt_tokens(waiting.context)
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(
                content=answer_text(self._tokenizer, answer),
                model=self.model_name,
                source="generate",
            ),
            stop_reason="max_tokens" if answer.truncated else "stop",
        )
        if logprobs:
            pairs = zip(answer.token_ids, answer.logprobs, strict=True)
            choice.logprobs = Logprobs(
                content=[
                    Logprob(token=self._tokenizer.decode([token]), logprob=logprob)
                    for token, logprob in pairs
                ]
            )
        count = len(answer.token_ids)
        return ModelOutput(
            model=self.model_name,
            choices=[choice],
            usage=ModelUsage(input_tokens=read, output_tokens=count, total_tokens=read + count),
            input_context_tokens=longest,
            metadata={
                "method": self._method_name,
                "paraphrases": len(waiting.context.paraphrases),
                "logprob": sum(answer.logprobs),
            },
        )

    def _prompt_tokens(self, context: MarkedContext) -> tuple[int, int]:
        """How many tokens the prompts that were asked have together, and the longest of them."""
        asked = context.paraphrases[: 1 if self._method_name in ORIGINAL_WORDING else None]
        prompts = [context.head + paraphrase + context.tail for paraphrase in asked]
        special = context.add_special_tokens
        ids = self._tokenizer(prompts, add_special_tokens=special)["input_ids"]
        lengths = [len(each) for each in ids]
        return sum(lengths), max(lengths)


def _check_others(others: dict[str, Any], base_url: str | None) -> None:
    """Raises UserError where an argument is unknown, or a server is named."""
    if base_url is not None:
        raise UserError("model_base_url: self-ensemble computes here and asks no server")
    if "trust_remote_code" in others:
        raise UserError(
            "trust_remote_code: code of a model's repository is never run; leave it out"
        )
    for name in sorted(others):
        parameters = inspect.signature(SelfEnsembleAPI).parameters.values()
        known = ", ".join(sorted(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))
        raise UserError(f"unknown argument {name!r} of {INSPECT_AI_NAME}: there is {known}")
