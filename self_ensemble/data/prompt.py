"""How a paraphrase becomes a prompt, as the Python interface takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from self_ensemble.data.names import DEFAULT_INSTRUCTION
from self_ensemble.data.prompts import PromptTemplate, chat_prompt_template, prompt_template
from self_ensemble.data.records import FewShot
from self_ensemble.data.registry import load_dataset


@dataclass(frozen=True)
class Prompt:
    """An instruction, few-shot demonstrations, `Q: {paraphrase}` and `A:`.

    instruction: what the prompt begins with; may be empty.
    few_shot: demonstrations: `FewShot`, or (question, answer) in a tuple.
    chat_template: put all of it, as one user message, into the model's own chat format.
    """

    instruction: str = DEFAULT_INSTRUCTION
    few_shot: Sequence[FewShot | tuple[str, str]] = ()
    chat_template: bool = False

    def template(self, tokenizer: Any) -> PromptTemplate:
        """The prompt with a gap for the paraphrase.

        Raises:
            UserError: there is no chat template, or none that leaves a message as it is.
        """
        shots = [shot if isinstance(shot, FewShot) else FewShot(*shot) for shot in self.few_shot]
        plain = prompt_template(self.instruction, shots)
        return chat_prompt_template(tokenizer, plain) if self.chat_template else plain

    @classmethod
    def of_demo(cls) -> Prompt:
        """The prompt that the bundled model was trained on."""
        demo = load_dataset("demo", max_samples=1)
        return cls(demo.instruction, demo.few_shot)


@dataclass(frozen=True)
class WholePrompts:
    """What is asked are prompts as they are. All prompts of a question must end alike.

    add_special_tokens: what the tokenizer is called with; False where the texts bring their own.
    """

    add_special_tokens: bool = True

    def template(self, tokenizer: Any) -> WholePrompts:
        return self

    def render(self, prompt: str) -> str:
        return prompt
