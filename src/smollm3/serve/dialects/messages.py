"""Contents of messages as the dialects send them, made into texts: the model reads nothing else.

What was said before is read generously: an image that a tool gave becomes a word on its kind, as
whoever sends the conversation can no longer change it. What is asked now is not: a question about
an image that the model does not see has no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Tag

from smollm3.serve.dialects.fields import Past
from smollm3.serve.errors import refused
from smollm3.serve.service import Json

# Parts of an answer that are told elsewhere, or that nobody can read.
_NOT_SAID = ("thinking", "redacted_thinking", "reasoning", "tool_use", "tool_call", "function_call")
_TEXTS = ("text", "input_text", "output_text", "reasoning_text", "summary_text", "refusal")


class TextPart(Past):
    type: Literal["text", "input_text", "output_text", "reasoning_text", "summary_text"]
    text: str


class RefusalPart(Past):
    """OpenAI's clients send it back as it came."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class OtherPart(Past):
    """An image, a file, a sound, ..."""

    model_config = ConfigDict(extra="allow")
    type: str

    @property
    def inner(self) -> Sequence[Any] | None:
        """Texts that it holds, if that is what it is: a document or a search result of texts."""
        source = (self.model_extra or {}).get("source")
        if isinstance(source, Mapping) and source.get("type") in ("text", "content"):
            held = source.get("data") or source.get("content")
        else:
            held = (self.model_extra or {}).get("content")
        held = [{"type": "text", "text": held}] if isinstance(held, str) else held
        return held if isinstance(held, list) and held and all(map(_is_text, held)) else None

    @property
    def text(self) -> str:
        """Its texts, or its kind in brackets: [image image/png]."""
        if self.inner is not None:
            title = (self.model_extra or {}).get("title")
            texts = [part["text"] for part in self.inner]
            return "\n".join([title, *texts] if isinstance(title, str) else texts)
        kind = self.type.removeprefix("input_").removesuffix("_url")
        details = [kind, *_details(self.model_extra or {})]
        return f"[{' '.join(details)}]"


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


_TOLD = ("media_type", "mime_type", "format", "filename", "title", "name", "tool_name")


def _details(part: Mapping[str, Any], depth: int = 2) -> list[str]:
    """Kind of its data and name, as far as it says them; the data themselves are left out."""
    told = [value[:80] for key in _TOLD if isinstance(value := part.get(key), str)]
    for value in part.values():
        if isinstance(value, str) and value.startswith("data:"):
            told.append(value[5:].partition(";")[0][:80])
        elif isinstance(value, Mapping) and depth:
            told += _details(value, depth - 1)
    return list(dict.fromkeys(filter(None, told)))


def tag_of(*known: str, default: str = "", other: str = "") -> Discriminator:
    """Tells forms apart by `type`, so that an error is about the form that was meant. default:
    where there is none; other: the form of types that are not known."""

    def tell(given: Any) -> str | None:
        kind = given.get("type") if isinstance(given, Mapping) else getattr(given, "type", None)
        kind = default if kind is None else kind
        return kind if kind in known else other if isinstance(kind, str) and other else None

    listed = ", ".join(known)
    return Discriminator(
        tell,
        custom_error_type="unknown_type",
        custom_error_message=f"needs a `type`: one of {listed}",
    )


def _tell_part(given: Any) -> str:
    kind = given.get("type") if isinstance(given, Mapping) else getattr(given, "type", None)
    return "refusal" if kind == "refusal" else "text" if kind in _TEXTS else "other"


Part = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[OtherPart, Tag("other")],
    Discriminator(_tell_part),
]
Content = str | list[Part]


def text_of(content: Content | None) -> str:
    """Parts of a text are lines of it."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


def check_readable(content: Content | None, where: str) -> None:
    """Raises ApiError where what is asked now holds more than texts. where: the field."""
    for i, part in enumerate(content if isinstance(content, list) else ()):
        check_part(part, f"{where}.{i}")


def check_part(part: Part, where: str) -> None:
    """The same of one part."""
    if isinstance(part, OtherPart) and part.inner is None:
        name = f"{where}.type"
        raise refused(f"{name}: {part.type!r:.80}: the model reads text only", name)


def apart(content: Content | None) -> tuple[str, str]:
    """An answer's reasoning and text. Calls among its parts are told beside them too."""
    if not isinstance(content, list):
        return "", content or ""
    held = [part.model_extra or {} for part in content if isinstance(part, OtherPart)]
    thoughts = [text for part in held if isinstance(text := part.get("thinking"), str)]
    rest = [
        part for part in content if not (isinstance(part, OtherPart) and part.type in _NOT_SAID)
    ]
    return "\n".join(thoughts), text_of(rest)


def begun_by(message: Json, follows: bool) -> str:
    """The beginning of an answer, of the last message. follows: behind another one."""
    if not follows:
        raise refused("messages: nothing comes before the begun answer", "messages")
    if message.keys() - {"role", "content"}:
        raise refused("messages: only a text can be gone on from, no reasoning or call", "messages")
    text: str = message["content"]
    return text


def check_begun(thinks: bool, form: object) -> None:
    """Raises ApiError where an answer that has begun can no longer be what is asked."""
    if thinks:
        raise refused("messages: a begun answer has no room for reasoning; turn it off", "messages")
    if form is not None:
        raise refused("messages: a begun answer cannot be held to a format", "messages")


def asked_from(roles: Sequence[str]) -> int:
    """The place behind the last answer: what follows is asked now."""
    answers = [i for i, role in enumerate(roles) if role == "assistant"]
    return answers[-1] + 1 if answers else 0
