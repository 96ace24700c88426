"""How a paraphrase becomes a prompt: text before it and behind it, or a prompt as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from self_ensemble.data.extraction import FIRST_LINE, Extraction

if TYPE_CHECKING:
    from self_ensemble.data.records import FewShot


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with a gap for the paraphrase.

    `add_special_tokens` is what the tokenizer is to be called with: a chat template's rendering
    carries its own BOS. `before_choice` is what stands between the prompt and a choice whose
    likelihood is asked for; None: what `choice_separator` says.
    """

    head: str
    tail: str
    add_special_tokens: bool = True
    before_choice: str | None = None

    def render(self, paraphrase: str) -> str:
        return self.head + paraphrase + self.tail


def construct_prompts(paraphrases: Iterable[str], template: PromptTemplate) -> list[str]:
    """One prompt a paraphrase, in the order given."""
    return [template.render(paraphrase) for paraphrase in paraphrases]


def prompt_template(instruction: str, few_shot: Sequence[FewShot]) -> PromptTemplate:
    """The plain few-shot prompt.

    `prompt_template("Name it.", [FewShot("Capital of Peru?", "Lima")])` renders "Capital of Mali?"
    as `Name it.\\n\\nQ: Capital of Peru?\\nA: Lima\\n\\nQ: Capital of Mali?\\nA:`. An empty
    instruction leaves no blank line behind.
    """
    opening = f"{instruction}\n\n" if instruction else ""
    examples = "".join(f"Q: {shot.question}\nA: {shot.answer}\n\n" for shot in few_shot)
    return PromptTemplate(head=f"{opening}{examples}Q: ", tail="\nA:")


@dataclass(frozen=True)
class WholePrompts:
    """What is asked are prompts as they are. All prompts of a question must end alike.

    add_special_tokens: what the tokenizer is called with; False where the texts bring their own.
    before_choice: see `PromptTemplate`.
    """

    add_special_tokens: bool = True
    before_choice: str | None = None

    def template(self, tokenizer: Any, extract: Extraction = FIRST_LINE) -> WholePrompts:
        """Itself: prompts are asked as they are."""
        return self

    def render(self, prompt: str) -> str:
        return prompt


def choice_separator(template: PromptTemplate | WholePrompts, prompt: str, choice: str) -> str:
    """What stands between a prompt and a choice whose likelihood is asked for.

    One space behind a plain prompt, as an answer has it in a few-shot demonstration; nothing behind
    a chat template's rendering (which brings its own special tokens), behind a prompt that ends in
    whitespace, or before a choice that begins with some; or what the template says.
    """
    if template.before_choice is not None:
        return template.before_choice
    plain = template.add_special_tokens
    return " " if plain and not prompt[-1:].isspace() and not choice[:1].isspace() else ""
