"""What can be had of a recipe's sources, without reading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from smollm3.data import places
from smollm3.data.hub import hub_files
from smollm3.data.spec import FileSource, HubSource, ProceduralSource, Source, StdlibSource
from smollm3.errors import UserError


@dataclass(frozen=True)
class Finding:
    """What is known of one source.

    where: its place. files, bytes: that are there; None where nobody could be asked. problem: why
    it cannot be had, as found now. needed: tokens that the recipe takes from it.
    """

    name: str
    source: Source
    where: str
    files: int | None
    bytes: int | None
    problem: str | None
    needed: float

    @property
    def status(self) -> str:
        return getattr(self.source, "status", "public")

    @property
    def repeats(self) -> float | None:
        """How often the recipe reads the published set."""
        published = getattr(self.source, "published_tokens", None)
        return self.needed / published if published and self.needed else None


def check(sources: Mapping[str, Source], needed: Mapping[str, float]) -> Iterator[Finding]:
    """One finding for each source, in order; the Hub is asked about many at once."""
    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(
            lambda item: _look(item[0], item[1], needed.get(item[0], 0.0)), sources.items()
        )


def _look(name: str, source: Source, needed: float) -> Finding:
    problem, where = None, ""
    files: list[tuple[str, int]] | None = None
    try:
        match source:
            case StdlibSource() | ProceduralSource():
                where = source.kind
            case HubSource():
                where = source.repo
                files = hub_files(source)[1]
            case FileSource():
                where = ", ".join(source.files)
                files = places.find(source.files)
    except UserError as e:
        problem = str(e).removeprefix(f"{where}@").partition(": ")[2] or str(e)
    return Finding(
        name,
        source,
        where,
        None if files is None else len(files),
        None if files is None else sum(size for _, size in files),
        problem,
        needed,
    )
