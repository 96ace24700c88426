"""What is wrong with a paraphrase: a copy, a leaked answer, a lost name, text that ran away.

Pure functions over texts; no model is loaded. `rejection_reasons` looks at one paraphrase,
`verdicts` at all of a question. A paraphrase passes where no reason is found:

| reason | the paraphrase |
| --- | --- |
| empty | holds no letter and no digit |
| many_lines | has a line break inside |
| truncated | ended at the token limit (generated ones only) |
| too_long | has more than three times the question's words and ten more |
| repeats | says a word three times running, or one run of four words twice |
| echo | has a marker of the prompt (`Q:`, `Answer:`, `<|...|>`), a colon at its end or an
announcement (`Sure!`, `1.`, `Another way:`), which the question has not; holds the whole question;
or is one of the prompt's examples |
| refused | opens with an apology, or with what its writer cannot do, as the question does not |
| copy_of_question | is the question but for case, punctuation, articles, spaces, accents |
| copy_of_another | is, in the same way, an earlier paraphrase in which nothing more is wrong |
| answer_leaked | holds all words of an answer in a row, which the question does not |
| lost_mask | has another number of `[MASK]` than the question; where a file mixes questions and
sentences with a gap, as the demo does: `verdicts` |
| lost_name | lacks a name or a number of the question: `names` |

Case and accents never count, except where capitals are what tells a name.
"""

import csv
import gzip
import importlib.util
import io
import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

from self_ensemble.evaluation.matchers import contains_run
from self_ensemble.paraphrasing.boilerplate import announces, quotes_question, refuses

REJECTION_REASONS = (
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
)

MASK = "[MASK]"
ARTICLES = frozenset(("a", "an", "the"))
LENGTH_FACTOR, LENGTH_SLACK = 3, 10  # words
REPEATED_WORDS, REPEATED_RUN = 3, 4

# A label with its colon, where a line or sentence begins; the marks of chat formats.
MARKER = re.compile(
    r"(?:^|[\n.?!]\s*)(?:Q|A|Question|Answer|Sentence|Paraphrase|Original|Rewritten|Rephrased"
    r"|Instruction|User|Assistant)\s*[0-9]*\s*:"
    r"|<\|[^|>\n]*\|>|</?(?:think|s|start_of_turn|end_of_turn)>|\[/?INST\]",
    re.IGNORECASE,
)

# Words that open a sentence or bind one together, and are no names however they are written.
COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about after all also am an and any are arent as at be been before being between both
        but by can cant could couldnt d did didnt do does doesnt dont during each either every
        few find for from give had hadnt has hasnt have havent he her here him his how hows i
        id if im in into is isnt it its itself ive let list ll m many may me might more most
        much must my name near neither no not now of off often on once one only or other our
        out over per please re s say several shall she should since so some such t tell than
        that the their them then there these they theyre this those through to under until up
        upon us ve was wasnt we were werent what whats when whens where wheres whether which
        while who whom whos whose why will with within without wont would wouldnt you your
        youre
        """,
    )
)

# What may differ at the end of two words that name the same: Mexico, Mexican; Italy, Italians.
ENDING = re.compile(r"[aeosyin]?|[eo]s|ns|ish|ese|ic|e?an|ians?|ia")
SHARED_LETTERS = 4

# Scripts that are written without spaces: every character counts as a word.
UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
# Within a word these are no borders: O'Neill, d’Ivoire.
APOSTROPHES = re.compile(r"(?<=\w)['’‘ʼ`´](?=\w)")
POSSESSIVE = re.compile(r"(?<=\w)['’‘ʼ`´]s\b", re.IGNORECASE)
QUOTED = re.compile(r"\"([^\"\n]+)\"|“([^”\n]+)”|«([^»\n]+)»|„([^“”\n]+)[“”]")


@lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """The words of a text without case, accents, punctuation and width.

    words("The  “Côte d’Ivoire”, 2.") is ("the", "cote", "divoire", "2").
    """
    text = unicodedata.normalize("NFKC", APOSTROPHES.sub("", text)).casefold()
    letters = (c for c in unicodedata.normalize("NFD", text) if not "\u0300" <= c <= "\u036f")
    text = unicodedata.normalize("NFC", "".join(map(_as_in_words, letters)))
    return tuple(UNSPACED.sub(r" \1 ", text).split())


def _as_in_words(letter: str) -> str:
    """Punctuation, controls and currencies are borders. Other symbols stay: C++ is not C."""
    category = unicodedata.category(letter)
    if category == "Cf":  # soft hyphens, joiners and the like show nothing
        return ""
    return " " if category[0] in "PZC" or category == "Sc" else letter


def key(text: str) -> tuple[str, ...]:
    """What two copies have in common: their words without articles."""
    return tuple(word for word in words(text) if word not in ARTICLES)


def names(text: str, casing: Mapping[str, float] | None) -> tuple[str, ...]:
    """The words of a question that its paraphrases must keep, as `words` spells them.

    These are words with a digit, words in double quotes, and capitalised words inside a sentence;
    never `COMMON_WORDS`. Where capitals tell nothing (the first word of a sentence, a text without
    any, a text with nothing else), a word is a name if `casing` has it more often with a capital
    than without, or not at all. Without `casing` such words are names only if capitalised and in
    front of another capitalised one.

    Args:
        text: the question.
        casing: log-probabilities of words as they are written, see `load_casing`; or None.
    """
    text = POSSESSIVE.sub("", text.replace(MASK, ";"))
    quotes = (match[match.lastindex or 0] for match in QUOTED.finditer(text))
    quoted = {word for quote in quotes for word in words(quote)}
    tokens = [token for token in _tokens(text) if words(token.text)]
    inner = [token.text[0].isupper() for token in tokens if not token.opens]
    # One capital is a name's; where every word has one, it is a headline.
    telling = any(inner) and not (len(inner) > 3 and all(inner))
    found: dict[str, None] = {}
    for token, behind in zip(tokens, [*tokens[1:], None], strict=False):
        if telling and not token.opens:
            is_name = token.text[0].isupper()
        elif casing is not None:
            is_name = _is_mostly_capitalised(token.text, casing)
        else:
            is_name = telling and token.text[0].isupper() and _continues(behind)
        for word in words(token.text):
            if word in COMMON_WORDS:
                continue
            if is_name or word in quoted or any(map(str.isdigit, word)):
                found[word] = None
    return tuple(found)


@dataclass(frozen=True)
class _Token:
    """A run of letters and digits; whether it opens a sentence, and follows a space alone."""

    text: str
    opens: bool
    adjoins: bool


def _tokens(text: str) -> list[_Token]:
    tokens, end = [], None
    for match in re.finditer(r"\w(?:[\w'’.]*\w)?", text):
        between = "" if end is None else text[end : match.start()]
        opens = end is None or re.search(r"[.?!:]\s", between) is not None
        tokens.append(_Token(match[0], opens, between == " "))
        end = match.end()
    return tokens


def _continues(token: _Token | None) -> bool:
    """Whether a name that begins before the token goes on with it."""
    if token is None or not (token.adjoins and token.text[0].isupper()):
        return False
    return not COMMON_WORDS.issuperset(words(token.text))


def _is_mostly_capitalised(token: str, casing: Mapping[str, float]) -> bool:
    """Also of a word that the table lacks: such are names more often than anything else."""
    lower, upper = token.lower(), token.upper()
    if lower == upper:  # no letters, or a script without case
        return False
    never = float("-inf")
    capital = max(casing.get(form, never) for form in (lower.capitalize(), upper))
    return lower not in casing or capital > casing[lower]


def casing_file() -> Path | None:
    """The table of `load_casing`, which comes with the package spacy-lookups-data; None without."""
    spec = importlib.util.find_spec("spacy_lookups_data")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "en_lexeme_prob.json.gz"
    return path if path.is_file() else None


@cache
def load_casing() -> Mapping[str, float] | None:
    """Log-probabilities of English words as they are written, or None where there is no table.

    Takes a second or two; spaCy is not imported.
    """
    path = casing_file()
    if path is None:
        return None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def _is_kept(name: str, among: Collection[str]) -> bool:
    return name in among or any(_same_name(name, word) for word in among)


def _same_name(name: str, word: str) -> bool:
    """Mexico and Mexican, Italy and Italians; a number is itself only."""
    if name[:SHARED_LETTERS] != word[:SHARED_LETTERS] or any(map(str.isdigit, name + word)):
        return False
    shared = next(
        (i for i, (a, b) in enumerate(zip(name, word, strict=False)) if a != b),
        min(len(name), len(word)),
    )
    cuts = range(SHARED_LETTERS, shared + 1)
    return any(ENDING.fullmatch(name[cut:]) and ENDING.fullmatch(word[cut:]) for cut in cuts)


def rejection_reasons(
    paraphrase: str,
    *,
    question: str,
    answers: Sequence[str],
    casing: Mapping[str, float] | None,
    earlier: Collection[tuple[str, Sequence[str]]] = (),
    echoes: Collection[tuple[str, ...]] = (),
    truncated: bool = False,
    masks: Collection[int] | None = None,
) -> tuple[str, ...]:
    """What is wrong with a paraphrase, in the order of REJECTION_REASONS; nothing where it passes.

    Args:
        paraphrase: as it would be asked.
        question: what it is to mean.
        answers: what counts as right; without any, no leaked answer is found.
        casing: from `load_casing`.
        earlier: the paraphrases before it, each with its reasons.
        echoes: the keys of the prompt's own examples.
        truncated: whether it ended at the token limit.
        masks: how many `[MASK]` it may have; None: as many as the question.
    """
    said, asked = words(paraphrase), words(question)
    if not said:
        return ("empty",)
    found = {
        "many_lines": len(paraphrase.strip().splitlines()) > 1,
        "truncated": truncated,
        "too_long": len(said) > LENGTH_FACTOR * len(asked) + LENGTH_SLACK,
        "repeats": repeats(said) and not repeats(asked),
        "echo": key(paraphrase) in echoes
        or (_shows_prompt(paraphrase) and not _shows_prompt(question))
        or announces(paraphrase, question)
        or quotes_question(key(paraphrase), key(question)),
        "refused": refuses(said, asked),
        "copy_of_question": key(paraphrase) == key(question),
        "answer_leaked": any(leaks(answer, paraphrase, question) for answer in answers),
        "lost_mask": paraphrase.count(MASK) not in (masks or (question.count(MASK),)),
        "lost_name": bool(lost_names(paraphrase, question, casing)),
    }
    wrong = {reason for reason, is_found in found.items() if is_found} | {"copy_of_another"}
    # Of one that is worse, such as one with a marker in front, this is no copy but the better one.
    is_copy = any(key(text) == key(paraphrase) and wrong.issuperset(was) for text, was in earlier)
    return tuple(r for r in REJECTION_REASONS if r in wrong and (r != "copy_of_another" or is_copy))


def verdicts(
    paraphrases: Sequence[str],
    *,
    question: str | None,
    answers: Sequence[str],
    casing: Mapping[str, float] | None,
) -> list[tuple[str, ...]]:
    """The `rejection_reasons` of each paraphrase of a question, in the order given.

    A question without `[MASK]` may be put as a sentence with one. Without a question, paraphrase 0
    is what the others are to mean, and is looked at alone; which wording comes first is chance, so
    that it may also be such a sentence, and the others questions.
    """
    found: list[tuple[str, ...]] = []
    for at, paraphrase in enumerate(paraphrases):
        count = (paraphrases[0] if question is None else question).count(MASK)
        asks = question is None and paraphrase.rstrip().endswith(("?", "？"))
        wrong = rejection_reasons(
            paraphrase,
            question=paraphrases[0] if question is None else question,
            answers=answers,
            casing=casing,
            earlier=list(zip(paraphrases, found, strict=False)),
            masks=(0, 1) if count == 0 else (0, count) if asks else (count,),
        )
        if question is None and at == 0:
            wrong = tuple(reason for reason in wrong if reason != "copy_of_question")
        found.append(wrong)
    return found


def _shows_prompt(text: str) -> bool:
    """`Q: who was it?`, or an announcement: `Here it is in other words:`."""
    return MARKER.search(text) is not None or text.rstrip().endswith((":", "："))


def repeats(said: Sequence[str]) -> bool:
    """Whether a word comes three times running, or a run of four words a second time."""
    thrice = range(len(said) - REPEATED_WORDS + 1)
    if any(len(set(said[at : at + REPEATED_WORDS])) == 1 for at in thrice):
        return True
    runs = [tuple(said[at : at + REPEATED_RUN]) for at in range(len(said) - REPEATED_RUN + 1)]
    return len(set(runs)) < len(runs)


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


def lost_names(
    paraphrase: str, question: str, casing: Mapping[str, float] | None
) -> tuple[str, ...]:
    """The names of the question (`names`) that the paraphrase lacks."""
    said = words(paraphrase)
    # What one of the two writes together counts as well: Spider-Man, Spiderman.
    among = {*said, *words(POSSESSIVE.sub("", paraphrase)), *map("".join, pairwise(said))}
    wanted = names(question, casing)
    joined = {name for pair in pairwise(wanted) if "".join(pair) in among for name in pair}
    return tuple(name for name in wanted if name not in joined and not _is_kept(name, among))


# The report

CELL_WIDTH = 56


def report_lines(
    filtered: Sequence[tuple[str, str, Sequence[str]]], *, have_answers: bool = True
) -> list[str]:
    """A table: how many paraphrases each reason was found in, their fraction, and one of them.

    filtered: uuid, paraphrase and its reasons. have_answers: whether the questions do; without
    them no leaked answer is looked for, and the table says so.
    """
    total = max(len(filtered), 1)
    lines = [f"{'reason':17} {'count':>7} {'share':>7}  example"]
    for reason in REJECTION_REASONS:
        if reason == "answer_leaked" and not have_answers:
            told = "not looked for: the questions have no answers"
            lines.append(f"{reason:17} {'-':>7} {'-':>7}  {told}")
            continue
        found = [paraphrase for _, paraphrase, wrong in filtered if reason in wrong]
        example = f"  {_cell(found[0])}" if found else ""
        lines.append(f"{reason:17} {len(found):7} {len(found) / total:7.4f}{example}")
    wrong = sum(1 for *_, found in filtered if found)
    lines.append(
        f"{'any of these':17} {wrong:7} {wrong / total:7.4f}  of {len(filtered)} paraphrases"
    )
    return lines


def _cell(text: str) -> str:
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= CELL_WIDTH else f"{shown[: CELL_WIDTH - 3]}..."


def report_csv(filtered: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """A row a paraphrase in which something was found: uuid, paraphrase, reasons (a JSON list)."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(("uuid", "paraphrase", "reasons"))
    writer.writerows(
        (uuid, paraphrase, json.dumps(list(wrong))) for uuid, paraphrase, wrong in filtered if wrong
    )
    return buffer.getvalue()
