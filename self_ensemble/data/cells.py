"""Values of a table's cells: checked, and shown in error sentences.

`where` is a cell's place in words, such as `line 3 of questions.jsonl`; sentences begin with it.
"""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from self_ensemble.system.errors import UserError

# A text as Python prints it, and a list of such: what pandas writes into a CSV. Two texts without a
# comma between them, as NumPy prints an array, are no list.
ESCAPE = r"\\(?:[\\'\"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
PYTHON_TEXT = rf"""(?:'(?:[^'\\\n]|{ESCAPE})*'|"(?:[^"\\\n]|{ESCAPE})*")"""
PYTHON_TEXTS = rf"{PYTHON_TEXT}\s*(?:,\s*{PYTHON_TEXT}\s*)*"
PYTHON_LIST = re.compile(rf"\[\s*(?:{PYTHON_TEXTS})?\]")
# What else of texts Python prints: a tuple, a set, a mapping such as SQuAD's answers.
PYTHON_OTHERS = re.compile(
    rf"\(\s*{PYTHON_TEXT}\s*,\s*(?:{PYTHON_TEXTS})?\)|\{{\s*(?:{PYTHON_TEXTS}|{PYTHON_TEXT}\s*:.*)\}}",
    re.DOTALL,
)


def checked_text(value: Any, what: str, where: str) -> str:
    """The value, which must be a text that says something and can be written as UTF-8.

    Raises:
        UserError: it is not.
    """
    if is_missing(value):
        raise UserError(f"{where}: {what} is empty")
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} must be a text, found {show(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {what} holds half a character: {show(value)}") from None
    return value


def checked_single(value: Any, what: str, where: str) -> str:
    """As `checked_text`; nor may it be several texts that are written into one.

    Raises:
        UserError: it is not, or it is.
    """
    text = checked_text(value, what, where)
    if _is_written_list(text) or PYTHON_OTHERS.fullmatch(text.strip()):
        raise UserError(
            f"{where}: {what} must be a single text, found several written into one: {show(text)}"
        )
    return text


def _is_written_list(text: str) -> bool:
    if not looks_like_list(text):
        return False
    try:
        found = parsed_list(text)
    except ValueError:
        return False
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def checked_texts(value: Any, column: str, where: str) -> tuple[str, ...]:
    """A list of texts, as it is, written as JSON, or as Python prints it.

    Raises:
        UserError: it is none, it is empty, or one of its texts is.
    """
    if isinstance(value, str) and looks_like_list(value):
        try:
            value = parsed_list(value)
        except ValueError:
            raise UserError(
                f"{where}: {column} looks like a list but is not JSON: {show(value)}"
            ) from None
    if not isinstance(value, list):
        raise UserError(f"{where}: {column} must be a list of texts, found {show(value)}")
    if not value:
        raise UserError(f"{where}: {column} is an empty list")
    return tuple(checked_text(text, f"{column}[{i}]", where) for i, text in enumerate(value))


def parsed_list(text: str) -> Any:
    """What JSON stands for, or a list of texts as Python prints it.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too deep") from None
    except ValueError:
        if not PYTHON_LIST.fullmatch(text.strip()):
            raise
    try:
        return ast.literal_eval(text.strip())
    except SyntaxError as error:  # an escape that stands for no character
        raise ValueError(str(error)) from None


def checked_label(value: Any, what: str, where: str) -> str | None:
    """A name: a text, or a whole number, which is as good a name. None where it is missing."""
    if is_missing(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked_text(value, what, where)


def is_missing(value: Any) -> bool:
    """Null, NaN, or nothing but white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def is_empty(value: Any) -> bool:
    """Missing, or a list of nothing."""
    return is_missing(value) or value == [] or (isinstance(value, str) and value.split() == ["[]"])


def looks_like_list(text: str) -> bool:
    text = text.strip()
    return text.startswith("[") and text.endswith("]")


def show(value: Any) -> str:
    """A value from a file as it can stand in a sentence."""
    try:
        shown = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} in which many others are nested"
    return shortened(shown if shown.isprintable() else ascii(value), 60)


def show_name(text: str) -> str:
    """A text that names something, without quotes where it can be read without."""
    return text if text.isprintable() and len(text) <= 60 else show(text)


def show_names(texts: Sequence[str]) -> str:
    return shortened(", ".join(show_name(text) for text in texts), 150) or "none"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
