"""From a recipe's source to a shard: read, render, tokenise, shuffle, hold out, check."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from smollm3.data.shards import GENERATED, PUBLISHED, Shard, ShardWriter
from smollm3.data.sources import Document, documents, fingerprint, hash64
from smollm3.data.spec import Source
from smollm3.errors import UserError
from smollm3.files import new_folder, sha256_json
from smollm3.tokenizer import Tokenizer

VERSION = 1  # of this module's and sources.py's output
FIRST_DAY = datetime.date(2025, 7, 1)
_BATCH = 256  # documents tokenised at once

# Token ids and masks of a document; two of each for a pair.
_Tokenised = tuple[list[list[int]], list[list[int]] | None]


def prepare(
    name: str,
    source: Source,
    tokenizer: Tokenizer,
    cache: Path,
    seed: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> Shard:
    """The shard of a source in <cache>/<name>-<key>, made if it is absent or damaged.

    The key covers the source's settings and files, the tokenizer and the seed. Text documents end
    with `tokenizer.end_of_text_id`; conversations are rendered by its template.
    progress: called with the number of documents done.
    meta["skipped"] counts what was left out, by reason.
    """
    try:
        settings = [source.model_dump(mode="json"), fingerprint(source), seed]
        key = sha256_json([VERSION, *settings, tokenizer.digest])
        folder = Path(cache) / f"{name}-{key[:16]}"
        if not _is_whole(folder):
            with new_folder(folder) as temporary:
                _write(temporary, name, source, tokenizer, seed=seed, progress=progress)
    except UserError as e:
        raise UserError(f"sources.{name}: {e}") from None
    return Shard.open(folder)


def _is_whole(folder: Path) -> bool:
    try:
        Shard.open(folder)
    except UserError:  # absent or damaged
        return False
    return True


def _write(
    folder: Path,
    name: str,
    source: Source,
    tokenizer: Tokenizer,
    *,
    seed: int,
    progress: Callable[[int], None] | None,
) -> None:
    skipped: Counter[str] = Counter()
    token_bytes = 2 if tokenizer.vocab_size <= 1 << 16 else 4
    group = 2 if source.format == "preference" else 1
    tokenise = {"text": _texts, "chat": _chats, "preference": _pairs}[source.format]
    stream = documents(source, seed, skipped)
    done = kept = 0
    writer = ShardWriter(folder, token_bytes, with_masks=source.format != "text", group=group)
    with closing(writer):
        while batch := list(islice(stream, _BATCH)):
            for document, made in zip(batch, tokenise(batch, tokenizer, skipped), strict=True):
                if made is not None:
                    key = hash64(f"{seed}/{document.id}")
                    writer.add(*made, key=key, content=document.content_hash())
                    kept += 1
            done += len(batch)
            if progress:
                progress(done)
        if not kept:
            reasons = ", ".join(f"{count}: {reason}" for reason, count in skipped.items())
            raise UserError(f"no usable documents ({reasons})")
        meta = {
            "name": name,
            "format": source.format,
            "source": source.model_dump(mode="json"),
            "tokenizer": tokenizer.digest,
            "seed": seed,
            "skipped": dict(sorted(skipped.items())),
        }
        writer.finish(source.holdout, meta)


def _texts(
    batch: list[Document], tokenizer: Tokenizer, skipped: Counter[str]
) -> Iterator[_Tokenised | None]:
    for ids in tokenizer.encode_batch([document.text or "" for document in batch]):
        yield [[*ids, tokenizer.end_of_text_id]], None


def _chats(
    batch: list[Document], tokenizer: Tokenizer, skipped: Counter[str]
) -> Iterator[_Tokenised | None]:
    for document in batch:
        try:
            rendered = tokenizer.render(
                document.messages,
                add_generation_prompt=False,
                date=_date(document),
                **document.options,
            )
            generated = rendered.generated
        except UserError as e:
            skipped[f"cannot be rendered: {e}"] += 1
            yield None
            continue
        bits = zip(generated, rendered.published, strict=True)
        yield [rendered.ids], [[GENERATED * g + PUBLISHED * p for g, p in bits]]


def _pairs(
    batch: list[Document], tokenizer: Tokenizer, skipped: Counter[str]
) -> Iterator[_Tokenised | None]:
    for document in batch:
        try:
            sides = [
                _side(document, answer, tokenizer)
                for answer in (document.chosen, document.rejected)
            ]
        except UserError as e:
            skipped[f"cannot be rendered: {e}"] += 1
            yield None
            continue
        yield [ids for ids, _ in sides], [mask for _, mask in sides]


def _side(
    document: Document, answer: list[dict[str, object]], tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    """Prompt and answer up to the answer's last stop token, and the mask of the answer."""
    rendered = tokenizer.render(
        [*document.messages, *answer],
        add_generation_prompt=False,
        date=_date(document),
        **document.options,
    )
    generated = rendered.generated
    starts = [i for i, g in enumerate(generated) if g and not (i and generated[i - 1])]
    earlier = sum(message["role"] == "assistant" for message in document.messages)
    if len(starts) <= earlier:
        raise UserError("without an answer")
    mask = [0] * starts[earlier]
    mask += [(GENERATED | PUBLISHED) * g for g in generated[starts[earlier] :]]
    end = len(mask) - mask[::-1].index(GENERATED | PUBLISHED)
    return rendered.ids[:end], mask[:end]


def _date(document: Document) -> datetime.date:
    """The day on which the conversation takes place, for templates that tell it: one of two
    years, so that a model learns to read the date and not to know it."""
    return FIRST_DAY + datetime.timedelta(days=hash64(document.id) % 730)
