"""From a recipe's source to a shard: read, filter, render, tokenise, shuffle, hold out, check.

The work is cut into parts by what is read, so what comes out does not depend on who made which.
A part appears whole or not at all, and so does the source's folder: whatever is killed, the parts
that were done are kept.
"""

from __future__ import annotations

import datetime
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from smollm3.data import steps
from smollm3.data.encoder import Encode, text_encoder
from smollm3.data.ledger import Counts, first_places
from smollm3.data.messages import Messages
from smollm3.data.shards import (
    GENERATED,
    PUBLISHED,
    SPLITS,
    PartWriter,
    Shard,
    read_part,
    write_meta,
)
from smollm3.data.sources import (
    Document,
    Plan,
    Skipped,
    documents,
    fingerprint,
    hash64,
    nothing_usable,
    plan,
)
from smollm3.data.spec import Source
from smollm3.errors import UserError
from smollm3.files import PARTIAL, disk_errors, folder_lock, fsync_folder, sha256_json
from smollm3.tokenizer import Rendered, Tokenizer

VERSION = 3  # of what the modules of this package make
FIRST_DAY = datetime.date(2025, 7, 1)
_BATCH = 64  # documents tokenised at once

# Token ids and masks of a document; two of each for a pair.
Tokenised = tuple[list[list[int]], list[list[int]] | None]
Step = Callable[[Any, int, int], Any]  # (documents, rank, world size): datatrove's convention


class Executor(Protocol):
    """Runs a step for ranks 0..tasks-1. waits: they are done when the call returns."""

    waits: bool

    def __call__(self, name: str, step: Step, tasks: int) -> None: ...


class Here:
    """The executor of small sources: this process, one part after another."""

    waits = True

    def __call__(self, name: str, step: Step, tasks: int) -> None:
        for rank in range(tasks):
            step(None, rank, tasks)


def prepare(
    name: str,
    source: Source,
    tokenizer: Tokenizer,
    cache: Path,
    seed: int,
    *,
    others: Mapping[str, Source] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Shard:
    """The shard of a source in <cache>/<name>-<key>, made here if it is absent or damaged.

    others: those that its steps compare it with. progress: called with the number of documents
    done. meta["skipped"] counts what was left out, by reason.
    """
    return Shard.open(
        make(name, source, tokenizer, cache, seed, Here(), others=others, progress=progress)
    )


def make(
    name: str,
    source: Source,
    tokenizer: Tokenizer,
    cache: Path,
    seed: int,
    execute: Executor,
    *,
    others: Mapping[str, Source] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Make the folder of a source if it is absent or damaged; where the executor does not wait, it
    will appear later.

    Its key covers the settings and files of the source and of `others`, the tokenizer and the
    seed. Text documents end
    with `tokenizer.end_of_text_id`; conversations are rendered by its template.
    """
    try:
        revision = fingerprint(source)
        settings = [source.model_dump(mode="json"), revision, seed]
        named = {other: (others or {})[other] for other in steps.across(source)}
        for other in named.values():
            settings += [other.model_dump(mode="json"), fingerprint(other)]
        key = sha256_json([VERSION, *settings, tokenizer.digest])
        folder = Path(cache).absolute() / f"{name}-{key[:16]}"
        if not _is_whole(folder):
            work = folder.with_name(f".{folder.name}{PARTIAL}")
            with folder_lock(work):
                tokenizer.save(work / "tokenizer")
                planned = {n: Planned(other, plan(other, seed)) for n, other in named.items()}
                job = Preparation(name, source, seed, work, plan(source, seed), revision, planned)
                for label, step, tasks in steps.before(job):
                    execute(label, step, tasks)
                here = isinstance(execute, Here)
                parts = MakePart(job, *((tokenizer, _Counted(progress)) if here else ()))
                execute("parts", parts, len(job.plan.parts))
                finish = Finish(job, folder)
                finish(None, 0, 1) if execute.waits else execute("finish", finish, 1)
    except UserError as e:
        raise UserError(f"sources.{name}: {e}") from None
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        for split in SPLITS:
            Shard.open(folder, split)
    except UserError:  # absent or damaged
        return False
    return True


def _publish(work: Path, folder: Path) -> None:
    """Give the finished folder its name; what only the work needed goes."""
    with disk_errors(folder):
        for path in [*work.glob(".lock*"), work / "tokenizer", work / "work"]:
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        work.rename(folder)
        fsync_folder(folder.parent)


@dataclass(frozen=True)
class Planned:
    """Another source and its parts, which signatures are taken of."""

    source: Source
    plan: Plan


@dataclass(frozen=True)
class Preparation:
    """A source on its way: what any worker must know to make any of its parts.

    work: the unfinished folder. revision: what the files were when it began. others: the sources
    that it is compared with.
    """

    name: str
    source: Source
    seed: int
    work: Path
    plan: Plan
    revision: Any
    others: Mapping[str, Planned] = field(default_factory=dict)

    def finish(self) -> None:
        """Write meta.json from the parts."""
        parts: list[dict[str, Any]] = []
        tokens = 0
        for index in range(len(self.plan.parts)):
            if tokens >= self.budget:
                break
            part = read_part(self.work, part_name(index))
            if part is None:
                raise UserError(f"part {index} was not made; run again")
            parts.append(part)
            tokens += _tokens(part)
        skipped = _sums(part["skipped"] for part in parts)
        if not any(part[split][0] for part in parts for split in SPLITS):
            shutil.rmtree(self.work, ignore_errors=True)
            raise UserError(nothing_usable(self.source, Counter(skipped)))
        meta = {
            "name": self.name,
            "format": self.source.format,
            "source": self.source.model_dump(mode="json"),
            "license": getattr(self.source, "license", None),
            "revision": self.revision,
            "tokenizer": parts[0]["tokenizer"],
            "token_bytes": parts[0]["token_bytes"],
            "seed": self.seed,
            "read": _sums(part["read"] for part in parts),
            "skipped": skipped,
            "places": first_places(part["places"] for part in parts),
            "dropped": _sums(part["dropped"] for part in parts),
            **{key: _sums(part[key] for part in parts) for key in Counts.SUMS},
        }
        write_meta(self.work, meta, parts)
        for folder in (*SPLITS, "parts"):  # of parts that lie beyond the budget, or of a killed run
            for file in (self.work / folder).iterdir():
                name = file.name.partition(".")[0]
                if not (name.isdigit() and int(name) < len(parts)):
                    file.unlink()

    @property
    def budget(self) -> float:
        """Tokens that are enough."""
        return getattr(self.source, "tokens", None) or math.inf

    def is_needed(self, index: int) -> bool:
        """False where the parts before it already hold the source's budget of tokens."""
        if self.budget == math.inf:
            return True
        made = [_made(self.work, i) for i in range(index)]
        return None in made or sum(n for n in made if n is not None) < self.budget


def _tokens(part: dict[str, Any]) -> int:
    return sum(part[split][1] for split in SPLITS)


_known_tokens: dict[tuple[Path, int], int] = {}  # tokens of finished parts, which do not change


def _made(work: Path, index: int) -> int | None:
    """Tokens of a part; None if it is not there. A worker asks for all parts before each of its."""
    if (work, index) not in _known_tokens:
        part = read_part(work, part_name(index))
        if part is None:
            return None
        _known_tokens[work, index] = _tokens(part)
    return _known_tokens[work, index]


def part_name(index: int) -> str:
    return f"{index:05d}"


def _sums(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sum of numbers under the same keys, however deep."""
    total: dict[str, Any] = {}
    for count in counts:
        for key, value in count.items():
            if isinstance(value, dict):
                total[key] = _sums([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return dict(sorted(total.items()))


class _Counted:
    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self.progress, self.done = progress, 0

    def add(self, n: int) -> None:
        self.done += n
        if self.progress:
            self.progress(self.done)


@dataclass(frozen=True)
class MakePart:
    """Makes part `rank` of a source, if it is not there. tokenizer: where it is loaded already."""

    job: Preparation
    tokenizer: Tokenizer | None = None
    done: _Counted | None = None

    def __call__(self, _: Any, rank: int, tasks: int) -> None:
        job = self.job
        if read_part(job.work, part_name(rank)) is not None or not job.is_needed(rank):
            return
        with disk_errors(job.work):
            self._make(rank, self.tokenizer or load_tokenizer(job.work / "tokenizer"))

    def _make(self, rank: int, tokenizer: Tokenizer) -> None:
        source = self.job.source
        skipped = Skipped()
        kept = steps.Ledger()
        stream = steps.apply(
            source, documents(source, self.job.seed, skipped, self.job.plan, rank), self.job, rank,
            kept,
        )  # fmt: skip
        tokenise = _texts if source.format == "text" else _talks
        encode = _encoder(tokenizer) if source.format == "text" else tokenizer.encode_batch
        writer = PartWriter(
            self.job.work,
            part_name(rank),
            token_bytes=2 if tokenizer.vocab_size <= 1 << 16 else 4,
            masks=source.format != "text",
            group=2 if source.format == "preference" else 1,
            holdout=source.holdout,
            alone=len(self.job.plan.parts) == 1,
            tokenizer=tokenizer.digest,
        )
        counts = Counts(thinks="enable_thinking" in tokenizer.template)
        with closing(writer):
            while batch := list(islice(stream, _BATCH)):
                made = tokenise(batch, tokenizer, encode, skipped)
                for document, tokens in zip(batch, made, strict=True):
                    if tokens is not None:
                        key = hash64(f"{self.job.seed}/{document.id}")
                        writer.add(*tokens, key=key, content=document.content_hash())
                        counts.add(document, *tokens)
                if self.done:
                    self.done.add(len(batch))
                if writer.tokens >= self.job.budget:
                    break
            writer.finish(
                {
                    "tokenizer": tokenizer.digest,
                    "token_bytes": writer.token_bytes,
                    "read": kept.read,
                    "skipped": dict(sorted(skipped.items())),
                    "places": skipped.places,
                    "dropped": kept.dropped,
                    **counts.sums(),
                }
            )


@dataclass(frozen=True)
class Finish:
    """Puts a source's parts together and gives the folder its name."""

    job: Preparation
    folder: Path

    def __call__(self, _: Any, rank: int, tasks: int) -> None:
        self.job.finish()
        _publish(self.job.work, self.folder)


@lru_cache(maxsize=1)
def load_tokenizer(folder: Path) -> Tokenizer:
    """A worker makes many parts with one tokenizer."""
    return Tokenizer.load(folder)


@lru_cache(maxsize=1)
def _encoder(tokenizer: Tokenizer) -> Encode:
    return text_encoder(tokenizer)


# Tokenising


def _texts(
    batch: list[Document], tokenizer: Tokenizer, encode: Encode, skipped: Skipped
) -> Iterator[Tokenised | None]:
    for ids in encode([document.text or "" for document in batch]):
        ids.append(tokenizer.end_of_text_id)
        yield [ids], None


def _talks(
    batch: list[Document], tokenizer: Tokenizer, encode: Encode, skipped: Skipped
) -> Iterator[Tokenised | None]:
    for document in batch:
        try:
            yield rendered(document, tokenizer)
        except UserError as e:
            skipped.note(f"cannot be rendered: {e}", document.place)
            yield None


def rendered(document: Document, tokenizer: Tokenizer) -> Tokenised:
    """The ids and masks of a conversation, or of both sides of a pair; one without a token to
    train on is a UserError.

    Where only the guessed mode does not go with the template, the template's own is taken.
    """
    try:
        return _rendered(document, tokenizer)
    except UserError:
        if not document.guessed:
            raise
        options = {k: v for k, v in document.options.items() if k != "enable_thinking"}
        return _rendered(replace(document, options=options), tokenizer)


def _rendered(document: Document, tokenizer: Tokenizer) -> Tokenised:
    if document.chosen:
        sides = [_side(document, a, tokenizer) for a in (document.chosen, document.rejected)]
        return [ids for ids, _ in sides], [mask for _, mask in sides]
    made = _render(document, document.messages, tokenizer)
    bits = zip(made.generated, made.published, strict=True)
    mask = [GENERATED * g + PUBLISHED * p for g, p in bits]
    if not any(mask):
        raise UserError("no token of it is trained on")
    return [made.ids], [mask]


def _render(document: Document, messages: Messages, tokenizer: Tokenizer) -> Rendered:
    return tokenizer.render(
        messages,
        add_generation_prompt=False,
        date=_date(document),
        **document.options,
    )


def _side(
    document: Document, answer: Messages, tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    """Prompt and answer up to the answer's last stop token, and the mask of the answer."""
    made = _render(document, [*document.messages, *answer], tokenizer)
    generated = made.generated
    starts = [i for i, g in enumerate(generated) if g and not (i and generated[i - 1])]
    earlier = sum(message["role"] == "assistant" for message in document.messages)
    if len(starts) <= earlier:
        raise UserError("without an answer")
    mask = [0] * starts[earlier]
    mask += [(GENERATED | PUBLISHED) * g for g in generated[starts[earlier] :]]
    end = len(mask) - mask[::-1].index(GENERATED | PUBLISHED)
    return made.ids[:end], mask[:end]


def _date(document: Document) -> datetime.date:
    """The day on which the conversation takes place, for templates that tell it: one of two
    years, so that a model learns to read the date and not to know it."""
    return FIRST_DAY + datetime.timedelta(days=hash64(document.id) % 730)
