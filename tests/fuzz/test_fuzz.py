"""Nothing but a UserError comes out of the readers and parsers, whatever goes in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from smollm3.chat import sandbox
from tests.fuzz.fuzzer import CORPUS, Broken, Target, attempt, fuzz
from tests.fuzz.targets import targets

NAMES = (
    *("chat", "gguf", "safetensors", "config", "history", "index", "settings", "tokenizer"),
    *("recipe", "template", "folder", "shard", "gguf-tokenizer"),
)
MEMORY = 400 << 20  # bytes that a campaign may add to this process at its peak
pytestmark = pytest.mark.xdist_group("fuzz")


@pytest.fixture(scope="module")
def known() -> Iterator[dict[str, Target]]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "MAX_SECONDS", 1.0)
        yield {target.name: target for target in targets(folder)}
    shutil.rmtree(folder)


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def test_they_are_a_million(known: dict[str, Target]) -> None:
    assert tuple(known) == NAMES
    assert sum(target.executions for target in known.values()) >= 1_000_000


def test_seeds_say_something(known: dict[str, Target]) -> None:
    """A seed that is refused at its first byte leads nowhere."""
    for target in known.values():
        if target.name not in ("safetensors", "history"):
            results = [target.run(seed) for seed in target.seeds]
            assert results


@pytest.mark.parametrize("name", NAMES)
def test_what_was_found_before(known: dict[str, Target], name: str) -> None:
    for path in known[name].corpus():
        attempt(known[name], path.read_bytes())


def test_the_corpus_belongs_to_targets() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_little(known: dict[str, Target], name: str) -> None:
    assert fuzz(known[name], seed=0, executions=1_000, seconds=0.2) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_lot(known: dict[str, Target], name: str) -> None:
    status = Path("/proc/self/clear_refs")
    if status.exists():
        status.write_text("5")  # the peak starts anew
        before = resident("VmRSS")
    assert fuzz(known[name], seed=1, executions=known[name].executions) == known[name].executions
    if status.exists():
        assert resident("VmHWM") - before < MEMORY


def test_the_fuzzer_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault is found and its input kept; the same seed finds the same one."""
    monkeypatch.setattr("tests.fuzz.fuzzer.CORPUS", tmp_path)

    def fragile(data: bytes) -> object:
        if data.startswith(b"ab"):
            return data[2] // (data[2] - 99)
        return data[:1]

    target = Target("planted", fragile, [b"xyz"], 0, [b"ab", b"c"])
    kept = []
    for _ in range(2):
        with pytest.raises(Broken, match="IndexError|ZeroDivision"):
            fuzz(target, seed=3, executions=100_000)
        kept.append([path.read_bytes() for path in target.corpus()])
        shutil.rmtree(tmp_path / "planted")
    assert len(kept[0]) == 1
    assert kept[0] == kept[1]
