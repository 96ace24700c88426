"""What is wrong with a paraphrase: a copy, a lost name, another question, text that ran away.

No model is loaded. `rejections` looks at one paraphrase, `verdicts` at all of a question; each
says which check failed, by which word, and at which value. A paraphrase passes where none did:

| check | the paraphrase |
| --- | --- |
| empty | holds no letter and no digit |
| many_lines | has a line break inside |
| truncated | ended at the token limit (generated ones only) |
| too_long | has more than three times the question's words and ten more |
| repeats | says a word three times running, or one run of four words twice |
| echo | has a marker of the prompt (`Q:`, `Answer:`, `<|...|>`), a colon at its end or an
announcement (`Sure!`, `1.`, `Another way:`), which the question has not; holds the whole question,
one of the prompt's demonstrations, or a name of them (`prompts.ECHOES`) |
| refused | opens with an apology, or with what its writer cannot do, as the question does not |
| copy_of_question | is the question but for case, punctuation, articles, spaces, accents |
| copy_of_another | is, in the same way, an earlier paraphrase in which nothing more is wrong |
| answer_leaked | holds all words of an answer in a row, which the question does not |
| lost_mask | has another number of `[MASK]` than the question; where a file mixes questions and
sentences with a gap, as the demo does: `verdicts` |
| lost_name | lacks a name or a number of the question: `names.lost_names` |
| added_name | has a name, a number or an unknown word that the question has not:
`names.added_names` |
| lost_words | lacks too many of the question's content words, the rare ones counting more:
`names.kept_weight` |
| not_a_question | says something, or asks for yes or no, where the question asks who, what, where |
| other_interrogative | asks for another type of answer: a time for a place, a number for a person |
| negation | denies something where the question does not, or the other way round |
| contrast | has a word for another that means something else: born for died; see `contrasts` |
| swapped_roles | asks who did it where the question asks to whom it was done, or the reverse |
| unlikely | does not bring the question to a model's mind: `Judgement.explained` is low; looked for
where a model is asked, and both are questions or both sentences with a gap |

Case and accents never count, except where capitals are what tells a name. The checks from lost_name
on are made for English.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from self_ensemble.evaluation.matchers import contains_run
from self_ensemble.paraphrasing.answer_types import changed_answer_type
from self_ensemble.paraphrasing.boilerplate import announces, quotes_question, refuses
from self_ensemble.paraphrasing.contrasts import contrast
from self_ensemble.paraphrasing.names import added_names, kept_weight, lost_names
from self_ensemble.paraphrasing.question_form import (
    changed_negation,
    lost_form,
    swapped_roles,
)
from self_ensemble.paraphrasing.rejections import Judgement, Rejection
from self_ensemble.paraphrasing.words import COMMON_WORDS, MASK, key, words

CHECKS = (
    "empty",
    "many_lines",
    "truncated",
    "too_long",
    "repeats",
    "echo",
    "refused",
    "copy_of_question",
    "copy_of_another",
    "answer_leaked",
    "lost_mask",
    "lost_name",
    "added_name",
    "lost_words",
    "not_a_question",
    "other_interrogative",
    "negation",
    "contrast",
    "swapped_roles",
    "unlikely",
)

# Of the checks and their thresholds: what another one rejects was drawn again otherwise.
FILTER_VERSION = 2

LENGTH_FACTOR, LENGTH_SLACK = 3, 10  # words
REPEATED_WORDS, REPEATED_RUN = 3, 4


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where the filter rejects; the defaults stand here alone, chosen as docs/paraphrases.md says.

    kept: least of the weight of the question's content words, see `names.kept_weight`.
    explained: least of the question that the paraphrase explains to the model, see `Judgement`.
    """

    kept: float = 0.15
    explained: float = 0.2


THRESHOLDS = Thresholds()

# A label with its colon, where a line or sentence begins; the marks of chat formats.
MARKER = re.compile(
    r"(?:^|[\n.?!]\s*)(?:Q|A|Question|Answer|Sentence|Paraphrase|Original|Rewritten|Rephrased"
    r"|Instruction|User|Assistant)\s*[0-9]*\s*:"
    r"|<\|[^|>\n]*\|>|</?(?:think|s|start_of_turn|end_of_turn)>|\[/?INST\]",
    re.IGNORECASE,
)


def rejections(
    paraphrase: str,
    *,
    question: str,
    answers: Sequence[str],
    earlier: Collection[tuple[str, Sequence[Rejection]]] = (),
    echoes: Collection[tuple[str, ...]] = (),
    truncated: bool = False,
    masks: Collection[int] | None = None,
    judgement: Judgement | None = None,
    thresholds: Thresholds = THRESHOLDS,
) -> tuple[Rejection, ...]:
    """What is wrong with a paraphrase, in the order of CHECKS; nothing where it passes.

    Args:
        paraphrase: as it would be asked.
        question: what it is to mean.
        answers: what counts as right; without any, no leaked answer is found.
        earlier: the paraphrases before it, each with its rejections.
        echoes: runs of words, as `words.key` gives them, of the prompt that asked for it.
        truncated: whether it ended at the token limit.
        masks: how many `[MASK]` it may have; None: as many as the question.
        judgement: what a model says of it, see `judge`; None where no model was asked.
        thresholds: where it is rejected.
    """
    if not words(paraphrase):
        return (Rejection("empty"),)
    found = [
        *_of_its_text(paraphrase, question, echoes, truncated),
        *_against_the_question(paraphrase, question, answers, masks),
        *(Rejection(check, word) for check, word in _of_meaning(paraphrase, question)),
    ]
    kept = kept_weight(paraphrase, question)
    if kept < thresholds.kept:
        found.append(Rejection("lost_words", value=round(kept, 4)))
    if judgement is not None:
        # Between a question and a sentence with a gap even a good paraphrase explains little.
        same_form = paraphrase.count(MASK) == question.count(MASK)
        if same_form and judgement.explained < thresholds.explained:
            found.append(Rejection("unlikely", value=round(judgement.explained, 4)))
    # Of one that is worse, such as one with a marker in front, this is no copy but the better one.
    wrong = {each.check for each in found} | {"copy_of_another"}
    copied = (
        text
        for text, was in earlier
        if key(text) == key(paraphrase) and wrong.issuperset(each.check for each in was)
    )
    found += [Rejection("copy_of_another", text) for text in copied][:1]
    return tuple(sorted(found, key=lambda each: CHECKS.index(each.check)))


def _of_its_text(
    paraphrase: str, question: str, echoes: Collection[tuple[str, ...]], truncated: bool
) -> Iterator[Rejection]:
    said, asked = words(paraphrase), words(question)
    if len(paraphrase.strip().splitlines()) > 1:
        yield Rejection("many_lines", value=len(paraphrase.strip().splitlines()))
    if truncated:
        yield Rejection("truncated")
    if len(said) > LENGTH_FACTOR * len(asked) + LENGTH_SLACK:
        yield Rejection("too_long", value=len(said))
    if (again := repeats(said)) and not repeats(asked):
        yield Rejection("repeats", again)
    if (
        _echoes(paraphrase, question, echoes)
        or (_shows_prompt(paraphrase) and not _shows_prompt(question))
        or announces(paraphrase, question)
        or quotes_question(key(paraphrase), key(question))
    ):
        yield Rejection("echo")
    if refuses(said, asked):
        yield Rejection("refused")


def _against_the_question(
    paraphrase: str, question: str, answers: Sequence[str], masks: Collection[int] | None
) -> Iterator[Rejection]:
    if key(paraphrase) == key(question):
        yield Rejection("copy_of_question")
    leaked = next((answer for answer in answers if leaks(answer, paraphrase, question)), None)
    if leaked is not None:
        yield Rejection("answer_leaked", leaked)
    if paraphrase.count(MASK) not in (masks or (question.count(MASK),)):
        yield Rejection("lost_mask", value=paraphrase.count(MASK))


def _of_meaning(paraphrase: str, question: str) -> Iterator[tuple[str, str]]:
    """(check, the word or what else it failed by)."""
    for name in lost_names(paraphrase, question):
        yield "lost_name", name
    for name in added_names(paraphrase, question):
        yield "added_name", name
    if said := lost_form(paraphrase, question):
        yield "not_a_question", said
    if other := changed_answer_type(paraphrase, question):
        yield "other_interrogative", other
    if word := changed_negation(paraphrase, question):
        yield "negation", word
    if pair := contrast(paraphrase, question):
        yield "contrast", f"{pair[0]} for {pair[1]}"
    if verb := swapped_roles(paraphrase, question):
        yield "swapped_roles", verb


def verdicts(
    paraphrases: Sequence[str],
    *,
    question: str | None,
    answers: Sequence[str],
    echoes: Collection[tuple[str, ...]] = (),
    judgements: Sequence[Judgement | None] = (),
) -> list[tuple[Rejection, ...]]:
    """The `rejections` of each paraphrase of a question, in the order given.

    A question without `[MASK]` may be put as a sentence with one. Without a question, paraphrase 0
    is what the others are to mean, and is looked at alone; which wording comes first is chance, so
    that it may also be such a sentence, and the others questions.
    """
    found: list[tuple[Rejection, ...]] = []
    for at, paraphrase in enumerate(paraphrases):
        count = (paraphrases[0] if question is None else question).count(MASK)
        asks = question is None and paraphrase.rstrip().endswith(("?", "？"))
        wrong = rejections(
            paraphrase,
            question=paraphrases[0] if question is None else question,
            answers=answers,
            earlier=list(zip(paraphrases, found, strict=False)),
            echoes=echoes,
            judgement=judgements[at] if judgements else None,
            masks=(0, 1) if count == 0 else (0, count) if asks else (count,),
        )
        if question is None and at == 0:
            wrong = tuple(each for each in wrong if each.check != "copy_of_question")
        found.append(wrong)
    return found


def _echoes(paraphrase: str, question: str, echoes: Collection[tuple[str, ...]]) -> bool:
    said, asked = key(paraphrase), key(question)
    return any(contains_run(said, run) and not contains_run(asked, run) for run in echoes)


def _shows_prompt(text: str) -> bool:
    """`Q: who was it?`, or an announcement: `Here it is in other words:`."""
    return MARKER.search(text) is not None or text.rstrip().endswith((":", "："))


def repeats(said: Sequence[str]) -> str:
    """The word that comes three times running, or the run of four that comes twice; or nothing."""
    for at in range(len(said) - REPEATED_WORDS + 1):
        if len(set(said[at : at + REPEATED_WORDS])) == 1:
            return said[at]
    seen = set()
    for at in range(len(said) - REPEATED_RUN + 1):
        run = tuple(said[at : at + REPEATED_RUN])
        if run in seen:
            return " ".join(run)
        seen.add(run)
    return ""


def leaks(answer: str, paraphrase: str, question: str) -> bool:
    """Whether the words of the answer stand in the paraphrase in a row and not in the question.

    One common word leaks only as it is written and with a capital: the answer US is not in `tell
    us`, and `is`, a short name of Iceland, is in every other sentence.
    """
    run = key(answer)
    if contains_run(key(question), run) or not contains_run(key(paraphrase), run):
        return False
    if len(run) == 1 and run[0] in COMMON_WORDS:
        written = answer.strip()
        at = re.search(rf"(?<!\w){re.escape(written)}(?!\w)", paraphrase)
        return not written.islower() and at is not None
    return True
