"""What a recipe says about where data come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from smollm3.spec import Spec


class _Source(Spec):
    """Common to all sources.

    format: what a row is: a text, a conversation, or a preference pair.
    rows: keep the first n rows (int), or that share of them (float <= 1), after one seeded
        shuffle; how alignment-handbook weighs SmolTalk2's splits.
    holdout: share of documents never trained on, chosen by a hash of their content.
    """

    format: Literal["text", "chat", "preference"] = "text"
    rows: Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, le=1)] | None = None
    holdout: float = Field(default=0.01, ge=0, lt=1)


class TextSource(_Source):
    """Plain text files, one document each, UTF-8."""

    kind: Literal["text"]
    files: list[str]


class JsonlSource(_Source):
    """JSON lines. Text rows have the field `text`; chat rows SmolTalk2's `messages`."""

    kind: Literal["jsonl"]
    files: list[str]
    text: str = "text"


class ParquetSource(_Source):
    """Parquet files with the same columns as JsonlSource."""

    kind: Literal["parquet"]
    files: list[str]
    text: str = "text"


class HubSource(_Source):
    """Parquet or JSONL files of a data set on the Hugging Face Hub."""

    kind: Literal["hub"]
    repo: str
    files: list[str] = Field(default=["**/*.parquet"])
    revision: str = "main"
    text: str = "text"


class StdlibSource(_Source):
    """The Python standard library on this machine: its code, or its docstrings as prose."""

    kind: Literal["stdlib"]
    part: Literal["code", "prose"]


class ProceduralSource(_Source):
    """Documents made on the spot by a named generator from (seed, index)."""

    kind: Literal["procedural"]
    generator: str
    documents: int = Field(gt=0)
    options: dict[str, Any] = Field(default_factory=dict)


Source = Annotated[
    TextSource | JsonlSource | ParquetSource | HubSource | StdlibSource | ProceduralSource,
    Field(discriminator="kind"),
]
