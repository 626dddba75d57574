"""Conversations as the dialects send them, made into what chat templates know."""

from __future__ import annotations

from collections.abc import Sequence

from smollm3.serve.dialects.fields import Content
from smollm3.serve.errors import refused
from smollm3.serve.service import Json


def text_of(content: Content | None) -> str:
    """Parts of a text are lines of it."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


def conversation(messages: Sequence[Json]) -> list[Json]:
    """With one system message at most, made of those that come first."""
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    system, rest = messages[:count], messages[count:]
    for i, message in enumerate(rest):
        if message["role"] == "system":
            raise refused(
                f"messages.{count + i}: a system message must come first, as SmolLM3's template "
                "knows no later ones",
                "messages",
            )
    texts = [message["content"] for message in system]
    return [{"role": "system", "content": "\n\n".join(texts)}, *rest] if texts else list(rest)
