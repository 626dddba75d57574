"""What a recipe says about where data come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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


class Step(Spec):
    """One step between reading and tokenising; see docs/data.md for what there is.

    kind: of a filter or formatter. language: of the texts, for steps that split words.
    options: its settings, as datatrove names them.
    """

    kind: Literal[
        "gopher_quality",
        "gopher_repetition",
        "fineweb_quality",
        "c4_quality",
        "code_quality",
        "language",
        "pii",
        "minhash",
        "decontaminate",
        "function",
    ]
    language: str = "eng_Latn"
    options: dict[str, Any] = Field(default_factory=dict)


class _FileSource(_Source):
    """Common to sources that are files.

    text: the column that holds the text, or a template such as "{problem}\\n\\n{solution}".
    tokens: stop when it holds so many. part: MB of input that one part is made from.
    steps: filters and formatters, in order (text only).
    license, status, published_tokens, note: what is known of it, for `smollm3 data check`; they
    change nothing that is made.
    """

    files: list[str]
    text: str = "text"
    tokens: float | None = Field(default=None, gt=0)
    part: float = Field(default=256, gt=0)
    steps: list[Step] = Field(default_factory=list)
    license: str | None = Field(default=None, exclude=True)
    status: Literal["public", "gated", "substitute", "unpublished"] = Field(
        default="public", exclude=True
    )
    published_tokens: float | None = Field(default=None, gt=0, exclude=True)
    note: str | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _only_texts_are_filtered(self) -> _FileSource:
        if self.steps and self.format != "text":
            raise ValueError(f"steps work on texts, not on format: {self.format}")
        return self


class TextSource(_FileSource):
    """Plain text files, one document each, UTF-8."""

    kind: Literal["text"]


class JsonlSource(_FileSource):
    """JSON lines. Text rows have the field `text`; chat rows SmolTalk2's `messages`."""

    kind: Literal["jsonl"]


class Blobs(Spec):
    """Texts that are not in the rows but in a bucket, under an id that the rows hold, compressed
    with gzip (The Stack v2, whose texts Software Heritage keeps).

    id, encoding: columns. url: with {id} in it. requests: at once.
    """

    id: str = "blob_id"
    encoding: str = "src_encoding"
    url: str = "https://softwareheritage.s3.amazonaws.com/content/{id}"
    requests: int = Field(default=64, gt=0)


class ParquetSource(_FileSource):
    """Parquet files with the same columns as JsonlSource."""

    kind: Literal["parquet"]
    blobs: Blobs | None = None


class HubSource(_FileSource):
    """Parquet or JSONL files of a data set on the Hugging Face Hub."""

    kind: Literal["hub"]
    repo: str
    files: list[str] = Field(default=["**/*.parquet"])
    revision: str = "main"
    blobs: Blobs | None = None


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
