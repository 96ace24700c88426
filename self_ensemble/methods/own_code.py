"""What a user registers: names that clash with no method's, and functions that may be edited."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

# Methods that are no registered function, and how results of attention fusion are called.
RESERVED = ("attention", "flex_attention", "origin", "per_prompt", "self_consistency")


def check_name(name: str, others: Callable[[str], bool]) -> None:
    """Refuse a name that another method has, or that can name no file.

    others: whether a name is registered as a method of another kind.

    Raises:
        ValueError: with the reason.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name!r} is no name: letters, digits and _ . - only")
    if name in RESERVED or others(name):
        raise ValueError(f"{name!r} is the name of another method")


def source_of(function: Any) -> dict[str, str]:
    """For a run's identity: the sha256 of a function's source, if it is a user's own.

    Results of a function and of what it was edited to are then told apart. Of the package's own
    functions nothing is said: their names are enough, and results of earlier releases go on.
    """
    bound = ""
    while isinstance(function, partial):
        bound += f"{function.args!r}{function.keywords!r}"
        function = function.func
    # A callable object's code is its class'.
    code = function if inspect.isroutine(function) else type(function)
    if not bound and code.__module__.partition(".")[0] == "self_ensemble":
        return {}
    try:
        text = inspect.getsource(code)
    except (OSError, TypeError):  # typed at a prompt, or not written in Python
        text = repr(function.__code__.co_code) if hasattr(function, "__code__") else repr(code)
    return {"source": hashlib.sha256((text + bound).encode()).hexdigest()}
