"""Numbers in texts, read exactly, for answers that are right whatever way they are written.

    read_number("The total is $1,000.50.")      Fraction(2001, 2)
    read_number("between 10-20")                None: two numbers, and no way to tell which

What is read. The last number of a text counts, as in lm-evaluation-harness's `flexible-extract` of
GSM8K (`group_select: -1`), so "5 + 6 = 11" is 11. As there and in GSM8K's own script (Cobbe et al.
2021, arXiv 2110.14168, `grade_school_math/dataset.py`) commas and currency signs do not count, a
percent sign does not divide ("5%" is 5), units are ignored ("5 kg"), and words are no numbers
("seven" is none, "3 million" is 3). Both compare what is left as texts; here it is compared as
numbers, so that "29.00" is 29 (EleutherAI/lm-evaluation-harness, issue 3214).

A run of digits and of the marks that join them is read whole or not at all:

* "1,000", "12,345.67", and the same with apostrophes or no-break spaces: thousands in groups of
  three. "-3", "+3", "−3", "-$5": a sign directly before, and not behind a digit or a letter.
* "1e3", "1.5 × 10^3", "2*10³": powers of ten.
* "1/2", "½", "2½", "2 1/2", "\\frac{1}{2}": fractions.
* ".5", "3." and digits of other scripts ("１２", "١٢") are what they seem.
* "3,14", "1.000,5", "1,00,000", "1 500": English has no such number, or it is two.
  "10-20", "2020-05-06", "10:30", "5/6/2020", "192.168.1.1", "10^3": these are several numbers or an
  expression. Where such a run is the last, the text holds no number, and a prediction is wrong.
"""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

CURRENCY = "$€£¥₹₩"
_SPACES = "\u00a0\u2009\u202f"  # no-break, thin, narrow no-break
_JOINTS = rf"[.,:'’_{_SPACES}/*+−–^-]|\^[+-]|[eE][+-]?"

# Digits with one joint between them. A space joins only what could be one number: "2 1/2", "1 500".
_RUN = re.compile(rf"\d+(?:(?:{_JOINTS}|[ ](?=\d+/\d)|(?<!\d{{4}})[ ](?=\d{{3}}(?!\d)))\d+)*")
_NUMBER = re.compile(
    rf"(?P<whole>[1-9]\d{{0,2}}(?P<separator>[,'’{_SPACES}])\d{{3}}(?:(?P=separator)\d{{3}})*"
    r"|(?!00)\d+)(?P<rest>(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)"
)
_FRACTION = re.compile(r"(?:(?P<whole>\d+) )?(?P<top>\d+)/(?P<bottom>\d+)")
_SIGN = re.compile(rf"(?:^|[^\w)\]}}.])(?P<sign>[+-])?[{CURRENCY}]?(?P<point>\.)?$")

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_LOOKALIKES = str.maketrans("−–－＋，．／⁄＄％", "---+,.//$%")
_NOTATIONS = [
    # LaTeX: 10,\!000, 10{,}000, 10\,000, \$5, \frac{1}{2}, 10^{3}
    (re.compile(r"\\!"), ""),
    (re.compile(r"(?<=\d)\{,\}(?=\d)"), ","),
    (re.compile(r"(?<=\d)\\,(?=\d)"), "\u2009"),
    (re.compile(r"\\(?=[$%])"), ""),
    (re.compile(r"(?<=\d)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r"\1/\2"),
    (re.compile(r"\^\{([+-]?\d+)\}"), r"^\1"),
    (re.compile(r"(?<=\d) ?(?:×|\\times|\\cdot|·|\*) ?10(?:\^|\*\*)([+-]?\d{1,3})\b"), r"e\1"),
]


def read_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None where it holds none, or its last cannot be read."""
    found = _last(text)
    return None if found is None else found[1]


def last_number(text: str) -> str:
    """The last number of a text as it is written, but in ASCII and without a currency or percent
    sign; empty where `read_number` reads none."""
    found = _last(text)
    return "" if found is None else found[0]


def _last(text: str) -> tuple[str, Fraction] | None:
    text = _plain(text)
    runs = list(_RUN.finditer(text))
    if not runs:
        return None
    run = runs[-1]
    before = _SIGN.search(text[: run.start()])
    point, negative = bool(before and before["point"]), bool(before and before["sign"] == "-")
    value = _value(run[0], point=point)
    if value is None:
        return None
    return "-" * negative + "." * point + run[0], -value if negative else value


def is_number(text: str) -> bool:
    """Whether the whole text is one number, but for a currency or percent sign around it."""
    if read_number(text) is None:
        return False
    text = _plain(text)
    first = next(_RUN.finditer(text))
    around = text[: first.start()] + text[first.end() :]
    return not around.strip(f"{CURRENCY}%+-. \n")


def _plain(text: str) -> str:
    """The text with its digits, signs, fractions and powers as ASCII has them."""
    text = re.sub(r"(?<=\d)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m[0].translate(_SUPERSCRIPTS), text)
    if not text.isascii():
        text = "".join(map(_ascii, text)).translate(_LOOKALIKES)
        # What was one character is a number of its own: "2½" is 2 1/2.
        text = re.sub(r"(?<=\d)\s?\0", " ", text).replace("\0", "")
    for pattern, plain in _NOTATIONS:
        text = pattern.sub(plain, text)
    return text


def _ascii(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    # ½ decomposes to 1, the fraction slash and 2.
    if unicodedata.category(character) == "No" and "⁄" in unicodedata.normalize("NFKC", character):
        return "\0" + unicodedata.normalize("NFKC", character)
    return character


def _value(run: str, *, point: bool) -> Fraction | None:
    """The run's value without its sign; None where it is not one number. point: one before it."""
    if found := _FRACTION.fullmatch(run):
        top, bottom = _exact(found["top"]), _exact(found["bottom"])
        if not bottom or point or (found["whole"] and top >= bottom):
            return None
        return _exact(found["whole"] or "0") + top / bottom
    if point:
        return _exact("." + run) if run.isdecimal() else None
    if found := _NUMBER.fullmatch(run):
        return _exact(re.sub(r"\D", "", found["whole"]) + found["rest"])
    return None


def _exact(digits: str) -> Fraction:
    # By way of Decimal, which takes any number of digits: int stops at 4,300, and a model that
    # repeats itself writes more.
    return Fraction(Decimal(digits))
