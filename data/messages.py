"""Conversations: role/content messages, and the from/value turns of sharegpt rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .schema import Message, RowError

ROLES = ("system", "developer", "user", "assistant", "tool")

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    **{role: role for role in ROLES},
}


def as_messages(value: Any, field: str) -> list[Message]:
    """Reads a conversation: a list of messages, one message, or a text (an assistant's turn).

    Raises:
        RowError: it is none of these, or empty, or a message has an unknown role or no content.
    """
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"{field} is of type {type(value).__name__}; allowed are text and a list of messages")
    if not value:
        raise RowError(f"{field} is empty")
    return [_message(turn, f"{field}[{index}]") for index, turn in enumerate(value)]


def _message(turn: Any, field: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{field} is of type {type(turn).__name__}, a message must have role and content")
    turn = without_none(turn)
    if "role" not in turn and "from" in turn:
        return _sharegpt_message(turn, field)
    role = turn.get("role")
    if role not in ROLES:
        raise RowError(f"{field} has the unknown role {role!r}; allowed are {', '.join(ROLES)}")
    content = _content(turn.get("content"), field)
    if not content.strip() and not turn.get("tool_calls") and role != "tool":
        raise RowError(f"{field} has no content")
    return {**turn, "role": role, "content": content}


def _sharegpt_message(turn: Mapping[str, Any], field: str) -> Message:
    role = SHAREGPT_ROLES.get(turn["from"])
    if role is None:
        raise RowError(f"{field} is from {turn['from']!r}; allowed are {', '.join(SHAREGPT_ROLES)}")
    value = _content(turn.get("value"), field)
    if turn["from"] == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _tool_calls(value, field)}
    return _message({"role": role, "content": value}, field)


def _content(content: Any, field: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        kinds = {part.get("type") for part in content} - {"text"}
        if not kinds and all(isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
        raise RowError(
            f"{field} has content of kind {', '.join(map(str, sorted(map(str, kinds))))}; only text is supported"
        )
    raise RowError(f"{field} has content of type {type(content).__name__}; allowed is text")


def _tool_calls(value: str, field: str) -> list[dict[str, Any]]:
    try:
        calls = json.loads(value)
    except json.JSONDecodeError as error:
        raise RowError(f"{field} is a function call that is not JSON: {error.msg}") from error
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise RowError(f"{field} is a function call without a name")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
        for call in calls
    ]


def as_tools(value: Any) -> list[Any] | None:
    """Reads tools: a list of JSON schemas, or the JSON text of one.

    Raises:
        RowError: it is neither.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowError(f"tools is not JSON: {error.msg}") from error
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError("tools must be a list of JSON schemas")
    return [without_none(tool) for tool in value] or None


def without_none(value: Any) -> Any:
    """Drops None under every key: tables fill the fields that other rows have, and templates print them."""
    if isinstance(value, str):  # most of what there is, and the dearest to tell from a mapping
        return value
    if isinstance(value, (dict, Mapping)):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_none(item) for item in value]
    return value
