"""Types of flags: from a text to a value, or an error that shows the text as it was typed."""

import argparse
import math
import re
from pathlib import Path
from typing import Literal

from self_ensemble.data.extraction import Extraction, parse_extraction
from self_ensemble.methods.weighting import parse_weighting
from self_ensemble.models.config import DEVICE_NAME
from self_ensemble.system.errors import UserError


def positive_int(text: str) -> int:
    number = _digits(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def non_negative_int(text: str) -> int:
    number = _digits(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return number


def auto_or_positive_int(text: str) -> int | None:
    """`auto` is None."""
    number = _digits(text)
    if text != "auto" and not number:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number above 0")
    return number


def number_of_workers(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    number = _digits(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number above 0")
    return number


def device_name(text: str) -> str:
    if not DEVICE_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N")
    return text


def index_list(text: str) -> tuple[int, ...]:
    """`0,2,4` -> (0, 2, 4); each at most once."""
    numbers = [_digits(part.strip()) for part in text.split(",")]
    indexs = tuple(number for number in numbers if number is not None)
    if len(indexs) < len(numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers of 0 or more, like 0,1,2"
        )
    if len(set(indexs)) < len(indexs):
        raise argparse.ArgumentTypeError(f"{text!r} names an index twice")
    return indexs


def column_value(text: str) -> tuple[str, str]:
    """`a=b` -> ("a", "b"); the value may hold a further `=`."""
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=VALUE")
    return column, value


def finite_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number


def positive_float(text: str) -> float:
    number = finite_float(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def positive_fraction(text: str) -> float:
    number = finite_float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return number


def float_list(text: str) -> tuple[float, ...]:
    """`1,0.5` -> (1.0, 0.5); finite numbers."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, like 1,0.5,2")
    return numbers


def weight_list(text: str) -> tuple[float, ...]:
    """A `float_list` of 0 or more each, not all 0."""
    weights = float_list(text)
    if min(weights) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} holds a weight below 0")
    if not any(weights):
        raise argparse.ArgumentTypeError(f"{text!r} holds no weight above 0")
    return weights


def weighting(text: str) -> str:
    """`entropy:1.0` -> `entropy:1`."""
    try:
        return str(parse_weighting(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def extraction(text: str) -> Extraction:
    try:
        return parse_extraction(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def stop_text(text: str) -> str | None:
    """A text that ends an answer, its escapes decoded; `none` is None.

    A text of the four letters none has an escape in it: `\\x6eone`.
    """
    if text == "none":
        return None
    if not text:
        raise argparse.ArgumentTypeError("'' is empty and would end every answer; see --stop none")
    if not text.isascii() and any("\ud800" <= character < "\ue000" for character in text):
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8")
    return decode_escapes(text)


ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


SPELLINGS = r"\n \t \r \\ \xNN \uNNNN"


def decode_escapes(text: str) -> str:
    r"""`\n`, `\t`, `\r`, `\\`, `\xNN` and `\uNNNN` become the characters that they stand for."""

    def decoded(escape: re.Match[str]) -> str:
        shown = escape[0]
        if escape["name"] in ESCAPES:
            return ESCAPES[escape["name"]]
        digits = escape["byte"] or escape["unit"]
        if digits is None:
            raise argparse.ArgumentTypeError(
                f"{_as_typed(text)} holds {shown}, which is none of {SPELLINGS}; a backslash "
                "itself is written twice"
            )
        if 0xD800 <= int(digits, 16) < 0xE000:
            raise argparse.ArgumentTypeError(
                f"{_as_typed(text)} holds {shown}, which is half a character; type the character"
            )
        return chr(int(digits, 16))

    hexadecimal = r"x(?P<byte>[0-9a-fA-F]{2})|u(?P<unit>[0-9a-fA-F]{4})"
    return re.sub(rf"\\(?:{hexadecimal}|(?P<name>.)?)", decoded, text, flags=re.S)


def _as_typed(text: str) -> str:
    """In quotes, its backslashes as they are: repr() would double them."""
    return f"'{text}'"


def jsonl_path(text: str) -> Path:
    if not text.endswith(".jsonl") or text.endswith("/.jsonl") or text == ".jsonl":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .jsonl")
    return Path(text)


def _digits(text: str) -> int | None:
    # int() would also take 1_000, +5, a blank, and digits of other scripts.
    return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else None
