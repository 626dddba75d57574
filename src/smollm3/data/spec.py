"""What a recipe says about data: where they come from, and how batches are made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from smollm3.config import StrictModel
from smollm3.data.places import Kind

Weight = Annotated[float, Field(gt=0)]
PREFERENCE_LOSSES = ("apo_zero", "apo_down", "dpo")


class SourceSpec(StrictModel):
    """Common to all sources.

    format: what a row is: a text, a conversation, or a preference pair.
    thinking: the mode of conversations that say nothing about it; None: /think for those with
        reasoning, /no_think for the others.
    rows: keep the first n rows (int), or that share of them (float <= 1), after one seeded
        shuffle; how alignment-handbook weighs SmolTalk2's splits.
    holdout: share of documents never trained on, chosen by a hash of their content.
    """

    format: Literal["text", "chat", "preference"] = "text"
    rows: Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, le=1)] | None = None
    holdout: float = Field(default=0.01, ge=0, lt=1)
    thinking: Literal["think", "no_think"] | None = None

    @model_validator(mode="after")
    def _only_conversations_think(self) -> SourceSpec:
        if self.thinking and self.format == "text":
            raise ValueError("thinking is for conversations, not for format: text")
        return self


class Step(StrictModel):
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


class _Files(SourceSpec):
    """Common to sources that are files.

    text: the column that holds the text, or a template such as "{problem}\\n\\n{solution}".
    columns: of conversations and pairs, where they have other names: {prompt: frage}.
    tokens: stop when it holds so many. part: MB of input that one part is made from.
    steps: filters and formatters, in order (text only).
    license, status, published_tokens, note: what is known of it, for `smollm3 data check`; they
    change nothing that is made.
    """

    files: list[str]
    text: str = "text"
    columns: dict[str, str] = Field(default_factory=dict)
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
    def _only_texts_are_filtered(self) -> _Files:
        if self.steps and self.format != "text":
            raise ValueError(f"steps work on texts, not on format: {self.format}")
        return self


class Blobs(StrictModel):
    """Texts that are not in the rows but in a bucket, under an id that the rows hold, compressed
    with gzip (The Stack v2, whose texts Software Heritage keeps).

    id, encoding: columns. url: with {id} in it. requests: at once.
    """

    id: str = "blob_id"
    encoding: str = "src_encoding"
    url: str = "https://softwareheritage.s3.amazonaws.com/content/{id}"
    requests: int = Field(default=64, gt=0)


class FileSource(_Files):
    """Files, folders, patterns and URLs.

    kind: how they are read: `files`: as their names or first bytes say; `text`: one document each;
        `jsonl`: JSON lines, or arrays; `csv`; `parquet`; `warc`: pages of web archives, whatever
        their names say.
    """

    kind: Literal["files", "text", "jsonl", "csv", "parquet", "warc"]
    blobs: Blobs | None = None

    @property
    def read_as(self) -> Kind | None:
        """What every file is; None where each is looked at."""
        return None if self.kind == "files" else self.kind


class HubSource(_Files):
    """Files of a data set on the Hugging Face Hub; without `files`, its data files that are not of
    a split for testing."""

    kind: Literal["hub"]
    repo: str
    files: list[str] = Field(default_factory=list)
    revision: str = "main"
    blobs: Blobs | None = None

    @property
    def read_as(self) -> Kind | None:
        return None


class StdlibSource(SourceSpec):
    """The Python standard library on this machine: its code, or its docstrings as prose."""

    kind: Literal["stdlib"]
    part: Literal["code", "prose"]


class ProceduralSource(SourceSpec):
    """Documents made on the spot by a named generator from (seed, index)."""

    kind: Literal["procedural"]
    generator: str
    documents: int = Field(gt=0)
    options: dict[str, Any] = Field(default_factory=dict)


Source = Annotated[
    FileSource | HubSource | StdlibSource | ProceduralSource,
    Field(discriminator="kind"),
]


class BatchSpec(StrictModel):
    """The part of a training stage that decides its batches.

    mixture: source -> weight, in tokens (in pairs for preference losses); divided by their sum.
        With `epochs` an epoch is all rows of the source with the largest weight, and of the others
        in proportion to theirs: with equal weights, every row once.
    loss, mask: which tokens are trained on; mask is which of a conversation's `assistant` counts.
    packing: concat_and_chunk cuts rows from one stream of tokens; bfd (best fit decreasing) puts
        whole documents into rows. Documents never attend to each other.
    context: tokens in a row. batch: rows (or pairs) in one optimizer step, over all ranks.
    Exactly one of tokens, steps and epochs says how long the stage is.
    """

    mixture: dict[str, Weight] = Field(min_length=1)
    loss: Literal["all", "assistant", "apo_zero", "apo_down", "dpo"] = "all"
    mask: Literal["generated", "published"] = "generated"
    packing: Literal["concat_and_chunk", "bfd"] = "concat_and_chunk"
    context: int = Field(ge=8)
    batch: int = Field(gt=0)
    tokens: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_one_length(self) -> BatchSpec:
        if sum(x is not None for x in (self.tokens, self.steps, self.epochs)) != 1:
            raise ValueError("give exactly one of tokens, steps and epochs")
        return self

    @property
    def is_preference(self) -> bool:
        return self.loss in PREFERENCE_LOSSES
