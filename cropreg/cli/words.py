"""What is done to the words of a command line before they are parsed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cyclopts.config import Dict

from cropreg.settings import (
    DEFAULT_RETRY,
    VERBS,
    VERDICT_NAMES,
    EvaluateSettings,
    ExportSettings,
    MatchSettings,
    PredictSettings,
    ReviewSettings,
    Settings,
    TrainSettings,
    read_yaml,
)

_SETTINGS: dict[str, type[Settings]] = dict(
    zip(VERBS, (MatchSettings, TrainSettings, EvaluateSettings, PredictSettings, ExportSettings, ReviewSettings), strict=True)
)
_WITHOUT_VALUE = ("--no-wait", "--dry-run", "--json", "--verbose", "-v", "--quiet", "-q", "--help", "-h", "--version")


def with_verdicts(arguments: Sequence[str]) -> list[str]:
    """The arguments with what follows ``--retry-failed`` (verdicts, or nothing) made one value, which is all that a flag can take."""
    tokens: list[str] = []
    retried: list[str] | None = None
    for token in arguments:
        if token == "--retry-failed":
            retried = []
        elif retried is not None and token in VERDICT_NAMES:
            retried.append(token)
        else:
            if retried is not None:
                tokens.append(f"--retry-failed={','.join(retried) or DEFAULT_RETRY}")
                retried = None
            tokens.append(token)
    return tokens if retried is None else [*tokens, f"--retry-failed={','.join(retried) or DEFAULT_RETRY}"]


def settings_file(tokens: Sequence[str]) -> list[Dict]:
    """The settings file named in the arguments or in CROPREG_CONFIG, checked against the verb's settings before it is used."""
    name = os.environ.get("CROPREG_CONFIG")
    for i, token in enumerate(tokens):
        if token == "--config" and i + 1 < len(tokens):
            name = tokens[i + 1]
        elif token.startswith("--config="):
            name = token.removeprefix("--config=")
    verb = tokens[0] if tokens else ""
    if name is None or verb not in _SETTINGS:
        return []
    values = read_yaml(Path(name), verb, _SETTINGS[verb])
    return [
        Dict({key.rstrip("_").replace("_", "-"): value for key, value in values.items()}, use_commands_as_keys=False, source=name)
    ]


def apart(tokens: Sequence[str]) -> list[str]:
    """Puts ``--`` before the verb of ``cropreg submit``, so that what follows is not taken for options of submit."""
    at = 1
    while at < len(tokens) and tokens[at].startswith("-") and tokens[at] != "--":
        at += 1 if "=" in tokens[at] or tokens[at] in _WITHOUT_VALUE else 2
    return [*tokens[:at], *(["--"] if tokens[at : at + 1] not in ([], ["--"]) else []), *tokens[at:]]
