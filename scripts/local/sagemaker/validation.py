"""Requests against botocore's own service model, with the texts of AWS.

botocore checks a request only partly before it sends it (never patterns or maximum lengths); the service
checks the rest. This module does what the service does, from the same model.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

from botocore.model import Shape

from .errors import ApiError, validation

_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "timestamp": (int, float),
    "boolean": (bool,),
}


def check_request(shape: Shape | None, request: object) -> None:
    """Raise SerializationException for wrong types, ValidationException for everything else wrong.

    `shape` is an operation's input shape; all broken constraints are reported in one message.
    """
    if not isinstance(request, dict):
        raise ApiError("SerializationException", "The request body is not a JSON object.")
    if shape is None:
        return
    problems = list(_problems(shape, request, ""))
    if problems:
        noun = "error" if len(problems) == 1 else "errors"
        raise validation(f"{len(problems)} validation {noun} detected: " + "; ".join(problems))


def _problems(shape: Shape, value: Any, path: str) -> Iterator[str]:
    expected = _JSON_TYPES.get(shape.type_name)
    if expected is None:
        raise ApiError("SerializationException", f"{path}: no JSON form for {shape.type_name}")
    if not isinstance(value, expected) or (isinstance(value, bool) and shape.type_name != "boolean"):
        raise ApiError(
            "SerializationException",
            f"{type(value).__name__} value at '{path}' can not be converted to {shape.type_name}",
        )
    content: Any = value
    if shape.type_name == "structure":
        yield from _structure_problems(shape, content, path)
    elif shape.type_name == "list":
        yield from _said(content, path, _size(shape, len(content)))
        for number, item in enumerate(content, 1):
            yield from _problems(shape.member, item, f"{path}.{number}.member")  # type: ignore[attr-defined]
    elif shape.type_name == "map":
        yield from _said(content, path, _size(shape, len(content)))
        for part, items in (("keys", list(content)), ("value", list(content.values()))):
            member = shape.key if part == "keys" else shape.value  # type: ignore[attr-defined]
            broken = [text for item in items for text in _map_part(member, item, path)]
            if broken:
                yield from _said(content, path, [f"Map {part} must satisfy constraint: [{', '.join(broken)}]"])
    else:
        yield from _said(content, path, _scalar(shape, value))


def _structure_problems(shape: Shape, value: dict[str, Any], path: str) -> Iterator[str]:
    prefix = f"{path}." if path else ""
    for name in shape.required_members:
        if value.get(name) is None:
            yield from _said(None, prefix + _camel(name), ["Member must not be null"])
    for name, item in value.items():
        member = shape.members.get(name)  # type: ignore[attr-defined]
        if member is None:
            yield from _said(item, prefix + name, ["Member is not known to the service model"])
        elif item is not None:
            yield from _problems(member, item, prefix + _camel(name))


def _map_part(shape: Shape, item: Any, path: str) -> list[str]:
    if shape.type_name in ("structure", "list", "map"):
        return list(_problems(shape, item, path))
    if not isinstance(item, _JSON_TYPES[shape.type_name]):
        raise ApiError(
            "SerializationException",
            f"{type(item).__name__} value at '{path}' can not be converted to {shape.type_name}",
        )
    return list(_scalar(shape, item))


def _scalar(shape: Shape, value: Any) -> Iterator[str]:
    limits = shape.metadata
    if shape.type_name == "string":
        yield from _size(shape, len(value), "length")
        if limits.get("enum") and value not in limits["enum"]:
            yield f"Member must satisfy enum value set: [{', '.join(limits['enum'])}]"
        if limits.get("pattern") and not _pattern(limits["pattern"]).fullmatch(value):
            yield f"Member must satisfy regular expression pattern: {limits['pattern']}"
    elif shape.type_name in ("integer", "long", "float", "double"):
        yield from _size(shape, value, "value")


def _size(shape: Shape, size: float, noun: str = "length") -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if high is not None and size > high:
        yield f"Member must have {noun} less than or equal to {high}"
    if low is not None and size < low:
        yield f"Member must have {noun} greater than or equal to {low}"


def _said(value: Any, path: str, constraints: Any) -> Iterator[str]:
    shown = "null" if value is None else f"'{value}'"
    for text in constraints:
        yield f"Value {shown} at '{path}' failed to satisfy constraint: {text}"


def _camel(name: str) -> str:
    """AWS names members in messages with a small first letter."""
    return name[:1].lower() + name[1:]


@functools.cache
def _pattern(java: str) -> re.Pattern[str]:
    """A Java pattern of the model for Python; Java's \\d, \\w and \\s are ASCII."""
    text = re.sub(r"\\p\{(\w+)\}", lambda found: _unicode_class(found.group(1)), java)
    return re.compile(text.replace(r"\z", r"\Z"), re.ASCII)


@functools.cache
def _unicode_class(name: str) -> str:
    """``\\p{L}`` and its like as ranges; the control plane's model uses them inside brackets only."""
    if name == "Alnum":
        return "a-zA-Z0-9"
    ranges: list[list[int]] = []
    for point in range(sys.maxunicode + 1):
        if unicodedata.category(chr(point)).startswith(name):
            if ranges and ranges[-1][1] == point - 1:
                ranges[-1][1] = point
            else:
                ranges.append([point, point])
    return "".join(f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in ranges)
