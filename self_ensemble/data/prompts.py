"""Prompts: an instruction and few-shot demonstrations, plain or in a chat format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self_ensemble.data.extraction import FIRST_LINE, Extraction
from self_ensemble.data.names import DEFAULT_INSTRUCTION, DEFAULT_NUM_FEW_SHOT
from self_ensemble.data.question_files import load_few_shot
from self_ensemble.data.records import Dataset, FewShot
from self_ensemble.data.registry import load_dataset
from self_ensemble.data.templates import PromptTemplate, prompt_template
from self_ensemble.system.errors import UserError

# Stands for the paraphrase while a chat template is rendered. Private-use characters: a template
# neither trims nor escapes them, and no text holds them.
SENTINEL = "\ue000\uf0f0\uf8ff"
# What a template that escapes its input would change. Rendered to see that it does not.
ESCAPE_PROBE = "“Who” said \"no\" & 'yes' to <b> \\ {{x}}?"


def chat_prompt_template(
    tokenizer: Any,
    template: PromptTemplate,
    extract: Extraction = FIRST_LINE,
    before: Sequence[Mapping[str, str]] = (),
) -> PromptTemplate:
    """`template` as one user message in the chat format of `tokenizer`'s model.

    A reasoning mode is switched off, unless what follows a thought is extracted, and the date that
    some templates print is fixed (Llama 3's own default), where the template has such switches:
    answers are a few tokens long, and a prompt must be the same tomorrow. Templates without them
    ignore both.

    Args:
        tokenizer: the model's own.
        template: the plain prompt.
        extract: what of a generation will be its prediction. A template may leave a thought open
            where that is not its first line, which would be one of the thought.
        before: messages in front of it, each with ``role`` and ``content``.

    Raises:
        UserError: there is no chat template, it does not put a message's text through unchanged and
            exactly once, or it leaves a thought open of which the prediction would be a line.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("--chat_template: the tokenizer of this model has no chat template")

    switches: dict[str, Any] = {"enable_thinking": extract.after_thought}
    if extract.after_thought:
        switches["thinking"] = True  # the same switch, as some call it; off unless it is given

    def render(paraphrase: str) -> str:
        try:
            return tokenizer.apply_chat_template(
                [*before, {"role": "user", "content": template.render(paraphrase)}],
                tokenize=False,
                add_generation_prompt=True,
                date_string="26 Jul 2024",
                **switches,
            )
        except Exception as error:  # a template is a program of the model's authors
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            refused = "these messages" if before else "a single user message"
            raise UserError(
                f"--chat_template: the model's chat template refuses {refused}: {reason}"
            ) from error

    pieces = render(SENTINEL).split(SENTINEL)
    if len(pieces) != 2:
        raise UserError(
            "--chat_template: the model's chat template shows the text of a message "
            f"{len(pieces) - 1} times where it must show it once"
        )
    rendered = PromptTemplate(head=pieces[0], tail=pieces[1], add_special_tokens=False)
    if rendered.render(ESCAPE_PROBE) != render(ESCAPE_PROBE):
        raise UserError("--chat_template: the model's chat template alters the text of a message")
    is_open = "</think>" not in rendered.tail.rpartition("<think>")[2]
    if "<think>" in rendered.tail and is_open and extract.kind == "line":
        raise UserError(
            "--chat_template: the model's chat template begins the answer with a thought (<think>) "
            "that nothing closes, and its first line is no answer: --extract after:</think> takes "
            "what follows it, with --stop none and a larger --max_new_tokens; or leave "
            "--chat_template out"
        )
    return rendered


def choose_template(
    dataset: Dataset,
    *,
    instruction: str | None,
    few_shot_file: Path | None,
    num_few_shot: int | None,
) -> PromptTemplate:
    """The plain prompt of a run: what the command line gives, else what the dataset brings.

    The first `num_few_shot` demonstrations are shown (None: some), or as many as there are.

    Raises:
        UserError: some were asked for, and there are none.
    """
    if instruction is None:
        instruction = dataset.instruction
    few_shot = dataset.few_shot if few_shot_file is None else load_few_shot(few_shot_file)
    if num_few_shot and not few_shot:
        raise UserError(
            f"--num_few_shot {num_few_shot}: the dataset {dataset.name} brings no few-shot "
            "demonstrations; give --few_shot FILE"
        )
    shown = DEFAULT_NUM_FEW_SHOT if num_few_shot is None else num_few_shot
    return prompt_template(instruction, few_shot[:shown])


@dataclass(frozen=True)
class Prompt:
    """What the Python interface is told of a prompt: what stands around `Q: {paraphrase}` and `A:`.

    instruction: what the prompt begins with; may be empty.
    few_shot: demonstrations: `FewShot`, or (question, answer) in a tuple.
    chat_template: put all of it, as one user message, into the model's own chat format.
    """

    instruction: str = DEFAULT_INSTRUCTION
    few_shot: Sequence[FewShot | tuple[str, str]] = ()
    chat_template: bool = False

    def __post_init__(self) -> None:
        for shot in self.few_shot:
            pair = (shot.question, shot.answer) if isinstance(shot, FewShot) else shot
            texts = isinstance(pair, tuple | list) and all(isinstance(x, str) for x in pair)
            if not texts or len(pair) != 2:
                raise UserError(
                    f"few_shot holds {shot!r}: give a FewShot, or (question, answer), for each "
                    "demonstration"
                )

    def template(self, tokenizer: Any, extract: Extraction = FIRST_LINE) -> PromptTemplate:
        """The prompt with a gap for the paraphrase.

        Raises:
            UserError: see `chat_prompt_template`, which has ``extract`` too.
        """
        shots = [shot if isinstance(shot, FewShot) else FewShot(*shot) for shot in self.few_shot]
        plain = prompt_template(self.instruction, shots)
        return chat_prompt_template(tokenizer, plain, extract) if self.chat_template else plain

    @classmethod
    def of_demo(cls) -> Prompt:
        """The prompt that the bundled model was trained on."""
        demo = load_dataset("demo", max_samples=1)
        return cls(demo.instruction, demo.few_shot)
