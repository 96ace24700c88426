"""Paraphrases inside one context: toolkits that ask with a single text carry them in it, marked.

    read_context("Q: Capital of Peru?␞Peru's capital?\\nA:", "␞")
    # head "Q: ", the two paraphrases, tail "\\nA:"

Nothing here imports torch or a toolkit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from self_ensemble.data.templates import PromptTemplate
from self_ensemble.system.errors import UserError

# SYMBOL FOR RECORD SEPARATOR: it can be seen, and texts do not hold it.
SEPARATOR = "\u241e"
# The library's own prompt, see `data.templates.prompt_template`: in it one separator between two
# paraphrases is enough, since it says where they begin and end.
CUE, ANSWER_CUE = "Q: ", "A:"
SHOWN_CHARACTERS = 60

T = TypeVar("T")


@dataclass(frozen=True)
class MarkedContext:
    """A context taken apart: ``head + paraphrase + tail`` is a prompt, for each paraphrase.

    add_special_tokens: what the tokenizer is called with.
    before_choice: what stands between a prompt and a choice whose likelihood is asked for.
    """

    head: str
    paraphrases: tuple[str, ...]
    tail: str
    add_special_tokens: bool = True
    before_choice: str = ""

    @property
    def ending(self) -> tuple[str, bool, str]:
        """What contexts that are asked together have in common."""
        return self.tail, self.add_special_tokens, self.before_choice

    def with_choices(self, continuations: Sequence[str]) -> tuple[MarkedContext, list[str]]:
        """Whitespace between the prompts and a question's choices, where all have the same.

        It belongs to the choices' tokens, even where the prompts end with it; their lengths, by
        which likelihoods may be compared, are counted without it.
        """
        tail = self.tail.rstrip()
        moved = [self.tail[len(tail) :] + continuation for continuation in continuations]
        spaces = {text[: len(text) - len(text.lstrip())] for text in moved}
        space = spaces.pop() if len(spaces) == 1 and all(map(str.strip, moved)) else ""
        choices = [text[len(space) :] for text in moved]
        return replace(self, tail=tail, before_choice=space), choices


def read_context(context: str, separator: str) -> MarkedContext | None:
    """What a context asks, in several wordings; None where no separator is in it.

    The paraphrases stand between two doubled separators, with one separator between each two:
    ``Frage: ␞␞p0␞p1␞p2␞␞ Antwort:``. In the library's own prompt the doubled ones are not needed:
    ``Q: p0␞p1␞p2`` on one line, and a next line that begins with ``A:``.

    Raises:
        UserError: it cannot be told where the paraphrases begin and end, or one of them is empty.
    """
    if separator not in context:
        return None
    parts = context.split(separator * 2)
    if len(parts) == 1:
        found = _read_own_prompt(context, separator)
    elif len(parts) == 3 and separator not in parts[0] + parts[2]:
        found = MarkedContext(parts[0], tuple(parts[1].split(separator)), parts[2])
    else:
        raise UserError(
            f"the paraphrases of the context {_shown(context)} are marked wrongly: one doubled "
            f"separator {separator * 2} must stand before the first of them and one behind the "
            "last, and none may be empty or stand in a demonstration (give the task a "
            "fewshot_config with a doc_to_text of its own)"
        )
    if not all(paraphrase.strip() for paraphrase in found.paraphrases):
        raise UserError(f"the context {_shown(context)} holds an empty paraphrase: take it out")
    return found


def _read_own_prompt(context: str, separator: str) -> MarkedContext:
    first, *middle, last = context.split(separator)
    line = first.rpartition("\n")[2]
    last, _, behind = last.partition("\n")
    lines = line.count(CUE) == 1 and not any("\n" in paraphrase for paraphrase in middle)
    if not lines or not behind.startswith(ANSWER_CUE):
        raise UserError(
            f"the context {_shown(context)} does not say where its paraphrases begin and end: "
            f"double the separator at both ends ({separator * 2}first{separator}second"
            f"{separator * 2}), or write them on one line behind a single {CUE!r} with "
            f"{ANSWER_CUE!r} on the next; a demonstration shows one wording (fewshot_config: "
            "doc_to_text)"
        )
    paraphrase = line.partition(CUE)[2]
    head = first[: len(first) - len(paraphrase)]
    return MarkedContext(head, (paraphrase, *middle, last), "\n" + behind)


def _shown(context: str) -> str:
    """The end of a context, where its question is."""
    text = context[-SHOWN_CHARACTERS:]
    return repr(text if text == context else f"…{text}")


def batches(
    members: Sequence[T], context_of: Callable[[T], MarkedContext]
) -> Iterator[tuple[PromptTemplate, list[T], list[tuple[str, ...]]]]:
    """(template, members, the texts that go into its gap) of what can be asked at once.

    A head that several have, such as an instruction with demonstrations, is the template's, and is
    encoded once. Where every context has demonstrations of its own, heads are part of the texts.
    """

    def template(head: str, context: MarkedContext) -> PromptTemplate:
        return PromptTemplate(head, *context.ending)

    by_prompt = grouped(members, lambda each: (context_of(each).head, context_of(each).ending))
    for group in by_prompt:
        first = context_of(group[0])
        if len(group) > 1:
            yield template(first.head, first), group, [context_of(m).paraphrases for m in group]
    alone = [group[0] for group in by_prompt if len(group) == 1]
    for group in grouped(alone, lambda each: context_of(each).ending):
        contexts = [context_of(each) for each in group]
        texts = [tuple(c.head + paraphrase for paraphrase in c.paraphrases) for c in contexts]
        yield template("", contexts[0]), group, texts


def grouped(members: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Members with equal keys together, in the order of the first of each."""
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for member in members:
        groups[key(member)].append(member)
    return list(groups.values())
