"""Settings from a YAML file, and a word about every wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cropreg.errors import UsageError
from cropreg.settings.verbs import VERBS, Settings

_MAX_FILE_BYTES = 2**20  # a settings file is small; a larger one is something else


def read_yaml(path: Path, verb: str, model: type[Settings]) -> dict[str, Any]:
    """Reads a YAML file of settings for one verb and checks it before anything else looks at it.

    The file holds the verb's settings at its top level, or below the verb's own name, so that one file can serve all verbs.

    Args:
        path: the file.
        verb: the verb they are for.
        model: the settings it may hold.

    Returns:
        the values that the file sets, by field name.

    Raises:
        UsageError: the file is not YAML, not a mapping, has a key nobody knows (with the nearest that is known), or a wrong value.
    """
    import yaml

    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path}: larger than 1 MiB, so it is no file of settings.")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-45
        raise UsageError(f"{path}: cannot be read as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold settings as 'name: value', got {type(values).__name__}.")
    if not set(VERBS).isdisjoint(values):
        for key in values:
            if key not in VERBS:
                raise UsageError(
                    f"{path}: {key!r} stands beside a verb but is none.{_meant(str(key), VERBS)} Put settings below a verb."
                )
            if not isinstance(values[key], dict | None):  # of any verb: export is one, and a setting of predict too
                got = type(values[key]).__name__
                raise UsageError(f"{path}: below {key!r} must stand settings as 'name: value', got {got}.")
        values = values.get(verb)
        if values is None:
            return {}
    named = {_field_name(str(key), model): value for key, value in values.items()}
    checked = check(named, model, str(path))
    return {name: getattr(checked, name) for name in named}


def _field_name(key: str, model: type[Settings]) -> str:
    """The field a key of a file means: spelt like a flag, and without the underscore behind a word that Python keeps for itself."""
    name = key.replace("-", "_")
    return f"{name}_" if name not in model.model_fields and f"{name}_" in model.model_fields else name


def check(values: dict[str, Any], model: type[Settings], origin: str) -> Settings:
    """Builds settings from values, and says of every wrong one what it is, where it stands, and what was probably meant.

    Raises:
        UsageError: with one line for each wrong value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                lines.append(f"{origin}: unknown setting {name!r}.{_meant(name, model.model_fields)}")
            else:
                lines.append(f"{origin}: {name}: {allowed(item['msg'])} (got {item['input']!r}).")
        raise UsageError("\n".join(lines)) from error


def allowed(message: str) -> str:
    """What pydantic says of a wrong value, in our words.

    >>> allowed("Input should be a valid integer, unable to parse string as an integer")
    'must be a whole number'
    """
    text = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    return text.replace("Input should", "must").replace("a valid integer", "a whole number").replace("a valid", "a")


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
