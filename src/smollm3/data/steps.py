"""Filters and formatters between reading and tokenising: datatrove's blocks, and some of our own in
the same form (`filters.py`), so that each also runs in a pipeline of datatrove's.

MinHash deduplication needs to have seen a whole source before it can drop anything. So a source
with that step is read twice: its signatures are made, sorted and clustered before its parts are.
So are those of the sources that it names in `across`, of which it drops what it has as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3.data.sources import Document, documents
from smollm3.data.spec import Source, Step
from smollm3.errors import UserError, first_line

if TYPE_CHECKING:
    from smollm3.data.preparation import Preparation

BLOCKS = {
    "gopher_quality": "datatrove.pipeline.filters:GopherQualityFilter",
    "gopher_repetition": "datatrove.pipeline.filters:GopherRepetitionFilter",
    "fineweb_quality": "datatrove.pipeline.filters:FineWebQualityFilter",
    "c4_quality": "datatrove.pipeline.filters:C4QualityFilter",
    "language": "smollm3.data.filters:Language",
    "pii": "datatrove.pipeline.formatters:PIIFormatter",
    "code_quality": "smollm3.data.filters:CodeQuality",
    "decontaminate": "smollm3.data.filters:Decontaminate",
    "function": "smollm3.data.filters:Function",
}
SPLITS_WORDS = {"gopher_quality", "gopher_repetition", "fineweb_quality", "c4_quality"}
_OF_MINHASH = {"n_grams", "num_buckets", "hashes_per_bucket", "seed", "across"}


class Ledger:
    """What went into the steps of one part and what each dropped, by reason."""

    def __init__(self) -> None:
        self.read = {"documents": 0, "characters": 0}
        self.dropped: dict[str, dict[str, dict[str, int]]] = {}

    def drop(self, step: str, reason: str, characters: int) -> None:
        reasons = self.dropped.setdefault(step, {})
        counts = reasons.setdefault(reason, {"documents": 0, "characters": 0})
        counts["documents"] += 1
        counts["characters"] += characters


class _Dropped:
    """Where a filter puts what it drops, in datatrove's words: a writer."""

    def __init__(self, step: str, ledger: Ledger) -> None:
        self.step, self.ledger = step, ledger

    def __enter__(self) -> _Dropped:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Any, rank: int = 0, **_: Any) -> None:
        default = "duplicate" if self.step == "minhash" else "dropped"
        reason = str(document.metadata.get("filter_reason") or default)
        self.ledger.drop(self.step, reason, len(document.text))


def apply(
    source: Source, stream: Iterator[Document], job: Preparation, rank: int, ledger: Ledger
) -> Iterator[Document]:
    """The documents that the source's steps leave, as they leave them."""
    return _apply(getattr(source, "steps", []), _counted(stream, ledger), job, rank, ledger)


def _counted(stream: Iterator[Document], ledger: Ledger) -> Iterator[Document]:
    for document in stream:
        ledger.read["documents"] += 1
        ledger.read["characters"] += len(document.text or "")
        yield document


def _apply(
    chain: list[Step], stream: Iterator[Document], job: Preparation, rank: int, ledger: Ledger
) -> Iterator[Document]:
    if not chain:
        return stream
    theirs = _theirs(stream)
    for place, step in enumerate(chain):
        theirs = _block(step, place, job, ledger).run(theirs, rank, len(job.plan.parts))
    return (Document(document.id, text=document.text) for document in theirs if document.text)


def _theirs(stream: Iterator[Document]) -> Any:
    from datatrove.data import Document as Theirs

    for document in stream:
        yield Theirs(text=document.text or "", id=document.id)


def _block(step: Step, place: int, job: Preparation, ledger: Ledger) -> Any:
    options = dict(step.options)
    if step.kind == "minhash":
        from datatrove.pipeline.dedup import MinhashDedupFilter

        folder = str(_work(job, place) / "remove")
        return MinhashDedupFilter(folder, exclusion_writer=_Dropped("minhash", ledger))
    if step.kind != "pii":
        options["exclusion_writer"] = _Dropped(step.kind, ledger)
    if step.kind in SPLITS_WORDS:
        options["language"] = step.language
    module, _, name = BLOCKS[step.kind].partition(":")
    return _built(step, lambda: getattr(import_module(module), name)(**options))


def _built(step: Step, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except TypeError as e:
        raise UserError(f"steps: {step.kind}: {e}") from None
    except ImportError as e:
        reason = first_line(e)
        raise UserError(f"steps: {step.kind}: {reason}; pip install 'smollm3[data]'") from None


# MinHash


def _work(job: Preparation, place: int) -> Path:
    return job.work / "work" / f"minhash-{place}"


def across(source: Source) -> list[str]:
    """The other sources that the steps of a source compare it with."""
    options = [step.options for step in getattr(source, "steps", []) if step.kind == "minhash"]
    return list(dict.fromkeys(name for option in options for name in option.get("across", [])))


def _config(step: Step) -> Any:
    """FineWeb's by default: 14 buckets of 8 hashes over 5-grams of words, which finds a pair of
    similarity s with the probability 1 - (1 - s^8)^14."""
    from datatrove.pipeline.dedup import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    if unknown := sorted(set(step.options) - _OF_MINHASH):
        raise UserError(
            f"steps: minhash: no option {unknown[0]!r}: {', '.join(sorted(_OF_MINHASH))}"
        )
    options = {key: value for key, value in step.options.items() if key != "across"}
    # sha1 as FineWeb has it; datatrove's xxhash wants a version that others do not.
    return MinhashConfig(hash_config=HashConfig(hash_fc="sha1"), **options)


def before(job: Preparation) -> list[tuple[str, Callable[[Any, int, int], Any], int]]:
    """(name, step, tasks) of what must be done before any part can be made."""
    todo: list[tuple[str, Callable[[Any, int, int], Any], int]] = []
    for place, step in enumerate(getattr(job.source, "steps", [])):
        if step.kind == "minhash":
            buckets = _built(step, lambda step=step: _config(step)).num_buckets  # type: ignore[misc]
            label = f"minhash-{place}"
            for name in step.options.get("across", []):
                parts = len(job.others[name].plan.parts)
                todo += [
                    (f"{label}-{name}-signatures", Signatures(job, place, name), parts),
                    (f"{label}-{name}-index", Index(job, place, name), buckets),
                ]
            todo += [
                (f"{label}-signatures", Signatures(job, place), len(job.plan.parts)),
                (f"{label}-buckets", Buckets(job, place), buckets),
                (f"{label}-clusters", Clusters(job, place), 1),
            ]
        elif step.kind in BLOCKS:
            _block(step, place, job, Ledger())  # a wrong option shows now, not in every worker
    return todo


@dataclass(frozen=True)
class _Minhash:
    """A phase of deduplication; a file says which of its ranks are done. other: the source that it
    works on, where that is not the job's own."""

    job: Preparation
    place: int
    other: str = ""

    @property
    def step(self) -> Step:
        return self.job.source.steps[self.place]  # type: ignore[union-attr]

    def folder(self, name: str) -> str:
        return str(_work(self.job, self.place) / name)

    @property
    def signatures(self) -> str:
        return self.folder(f"signatures-{self.other}" if self.other else "signatures")

    def __call__(self, _: Any, rank: int, tasks: int) -> None:
        done = Path(self.folder(f"{type(self).__name__}-{self.other}")) / str(rank)
        if done.exists():
            return
        self.run(rank, tasks)
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()

    def run(self, rank: int, tasks: int) -> None:
        raise NotImplementedError


class Signatures(_Minhash):
    def run(self, rank: int, tasks: int) -> None:
        from datatrove.pipeline.dedup import MinhashDedupSignature

        job, source, planned = self.job, self.job.source, self.job.plan
        chain = source.steps[: self.place]  # type: ignore[union-attr]
        if self.other:
            source, planned = job.others[self.other].source, job.others[self.other].plan
            chain = [s for s in getattr(source, "steps", []) if s.kind != "minhash"]
        stream = documents(source, job.seed, None, planned, rank)
        stream = _apply(chain, stream, job, rank, Ledger())
        MinhashDedupSignature(
            self.signatures, config=_config(self.step), language=self.step.language
        ).run(_theirs(stream), rank, tasks)


class Index(_Minhash):
    """What another source has, of which its own duplicates are no matter here."""

    def run(self, rank: int, tasks: int) -> None:
        from datatrove.pipeline.dedup import MinhashDedupBuckets

        MinhashDedupBuckets(
            self.signatures,
            self.folder(f"pairs-{self.other}"),
            index_folder=self.folder("index"),
            config=_config(self.step),
            create_index_name=self.other,
        ).run(None, rank, tasks)


class Buckets(_Minhash):
    def run(self, rank: int, tasks: int) -> None:
        from datatrove.pipeline.dedup import MinhashDedupBuckets

        MinhashDedupBuckets(
            self.signatures,
            self.folder("buckets"),
            index_folder=self.folder("index") if self.step.options.get("across") else None,
            config=_config(self.step),
            only_dedup_in_index=False,
        ).run(None, rank, tasks)


class Clusters(_Minhash):
    def run(self, rank: int, tasks: int) -> None:
        from datatrove.pipeline.dedup import MinhashDedupCluster

        MinhashDedupCluster(
            self.folder("buckets"), self.folder("remove"), config=_config(self.step)
        ).run(None, rank, tasks)
