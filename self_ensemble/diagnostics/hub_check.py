"""Whether models can be fetched from the hub."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from self_ensemble.diagnostics.checks import OK, WARNING, Check, one_line

HUB = "https://huggingface.co"
HUB_SECONDS = 3


def check_hub() -> Iterator[Check]:
    """Whether models can be fetched. Says whether there is a token, never what it is."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Check("hub", OK, "HF_HUB_OFFLINE is set: only files that are here already are used")
        return
    given = os.environ.get("HF_ENDPOINT") or HUB
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", given):
        yield Check("hub", WARNING, "HF_ENDPOINT is no address", f"write it like {HUB}")
        return
    named = without_login(given)
    problem = unreachable(named)
    if problem:
        yield Check(
            "hub",
            WARNING,
            f"{named} cannot be reached ({problem})",
            "the demo needs no hub; for others set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 "
            "where the files are here already",
        )
    else:
        yield Check("hub", OK, f"{named} answers")
    if find_spec("huggingface_hub"):
        yield check_token()


def check_token() -> Check:
    """Whether there is a token; never what it is."""
    from self_ensemble.system.hub_errors import token_file

    if os.environ.get("HF_TOKEN"):
        return Check("hub token", OK, "HF_TOKEN is set")
    if Path(token_file()).is_file():
        return Check("hub token", OK, f"there is one in {token_file()}")
    said = "none: models behind a licence (Llama, Gemma) need HF_TOKEN, others do not"
    return Check("hub token", OK, said)


def without_login(url: str) -> str:
    """A URL may carry a name and a password; these are shown to nobody."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def unreachable(endpoint: str) -> str:
    """Why the hub does not answer; empty if it does. Takes `HUB_SECONDS` at most."""
    reasons = [f"no answer within {HUB_SECONDS} s"]

    def ask() -> None:
        try:
            with urlopen(f"{endpoint.rstrip('/')}/api/models?limit=1", timeout=HUB_SECONDS):
                reasons.append("")
        except HTTPError as error:  # it answers, and may want a login for this
            reasons.append(f"HTTP status {error.code}" if error.code >= 500 else "")
        except (OSError, ValueError, HTTPException) as error:
            reasons.append(one_line(getattr(error, "reason", error)))

    # Looking up a name may take longer than any timeout of the connection's.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return reasons[-1]
