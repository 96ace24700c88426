"""Fusions, weightings and methods that pretrained.py compares and the toolkit does not bring.

Whatever is registered here is known by its name (`register_fusion`, `register_weighting`,
`register_logit_method`, `register_vote`). A method that is none of these is a class or function
with settings as keyword arguments, under its name in `METHODS`.
"""

from collections.abc import Callable
from typing import Any

METHODS: dict[str, Callable[..., Any]] = {}
