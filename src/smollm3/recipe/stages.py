"""What each kind of stage does with its inputs. Nothing here knows what was done before."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from smollm3 import checkpoint, data, merge
from smollm3.chat import Renderer, default_template
from smollm3.checkpoint.export import export
from smollm3.data.ledger import notes
from smollm3.data.readers import Read
from smollm3.data.sources import fingerprint, raw_rows
from smollm3.data.spec import FileSource, Source
from smollm3.errors import UserError
from smollm3.eval import evaluate
from smollm3.eval.results import ITEMS, read_results
from smollm3.eval.spec import BenchmarkStage, EvalStage
from smollm3.files import read_json, sha256_json, write_json
from smollm3.model import ModelConfig
from smollm3.recipe.card import card_of
from smollm3.recipe.graph import sources_of
from smollm3.recipe.identity import load_tokenizer
from smollm3.recipe.schema import (
    KEPT,
    ExportStage,
    MergeStage,
    Recipe,
    Stage,
    SynthSource,
    TokenizerStage,
)
from smollm3.recipe.scoring import scorer
from smollm3.recipe.trackers import Trackers
from smollm3.synth.prompts import usable_prompts
from smollm3.synth.run import ANSWERS
from smollm3.synth.run import Run as Synthesis
from smollm3.synth.spec import SynthStage
from smollm3.tokenizer import CONTROL, CONTROL_SPLIT, Tokenizer
from smollm3.train import TrainJob, WorkerGroup
from smollm3.train.job import StepRecord
from smollm3.train.metrics import keeps
from smollm3.train.spec import TrainStage

BESIDE = "beside"  # in the folder of a benchmark stage: the same of its second model

Progress = Callable[[str, float, float, str], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class StageInputs:
    """Where a stage reads and works. `parents` maps the recipe's word to a folder; `trackers` are
    told its steps."""

    name: str
    recipe: Recipe
    parents: dict[str, Path]
    digests: dict[str, str]
    lineage: list[dict[str, Any]]
    tokenizer: Path | None
    data: Path
    work: Path
    trackers: Trackers | None = None

    @property
    def parent(self) -> Path | None:
        return next(iter(self.parents.values()), None)

    def source(self, name: str) -> Source:
        return self.recipe.source(name, self.data.parent)


@dataclass(frozen=True)
class StageResult:
    """`save` fills the stage's (temporary) folder; the rest goes into stage.json.

    sources: checksum of each source read; revisions: what its files were, where it has any.
    tokens: tokens taken from each source. positions: where the next stage that carries `data`
    continues in each.
    """

    save: Callable[[Path], None]
    sources: dict[str, str] = field(default_factory=dict)
    revisions: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)


def run_stage(
    stage: Stage, inputs: StageInputs, workers: WorkerGroup, progress: Progress, warn: Warn
) -> StageResult:
    """Do the stage's work; nothing is written outside `inputs.work` and the prepared data."""
    match stage:
        case TokenizerStage():
            return _tokenizer(stage, inputs, progress)
        case SynthStage():
            return _synth(stage, inputs, progress, warn)
        case TrainStage():
            return _train(stage, inputs, workers, progress, warn)
        case MergeStage():
            return _merge(stage, inputs)
        case EvalStage():
            return _eval(stage, inputs, progress)
        case BenchmarkStage():
            return _benchmark(stage, inputs, progress)
        case ExportStage():
            return _export(stage, inputs)


def _tokenizer(stage: TokenizerStage, inputs: StageInputs, progress: Progress) -> StageResult:
    template = default_template(**inputs.recipe.chat.model_dump())
    if stage.from_ is not None:
        tokenizer = checkpoint.load_tokenizer(stage.from_)
        if not tokenizer.template:
            tokenizer = tokenizer.with_template(template)
        return StageResult(tokenizer.save, metrics={"vocabulary": tokenizer.vocab_size})
    assert stage.vocab is not None  # the recipe's check
    total = sum(stage.mixture.values())
    renderer = Renderer(template, CONTROL, ["<|im_end|>"], {})
    texts = chain.from_iterable(
        _texts(inputs, name, stage.characters * weight / total, renderer)
        for name, weight in stage.mixture.items()
    )
    progress("learning merges", 0, 1, f"{stage.vocab} entries")
    tokenizer = Tokenizer.train(texts, stage.vocab, template)
    return StageResult(tokenizer.save, metrics={"vocabulary": tokenizer.vocab_size})


def _texts(
    inputs: StageInputs, source: str, characters: float, renderer: Renderer
) -> Iterator[str]:
    """Text of a source, documents in order, until `characters` are reached.

    Conversations come as the template renders them, so that its own words are short too; control
    tokens are cut out, as they are no text.
    """
    taken = 0
    for document in data.documents(inputs.source(source), inputs.recipe.seed):
        text = document.text
        if text is None:
            messages = [*document.messages, *document.chosen]
            text = renderer.render(messages, add_generation_prompt=False, **document.options).text
        for piece in CONTROL_SPLIT.split(text):
            if taken >= characters:
                return
            taken += len(piece)
            yield piece


def _prepare(
    inputs: StageInputs, sources: list[str], tokenizer: Tokenizer, progress: Progress
) -> dict[str, data.Shard]:
    shards = {}
    for i, name in enumerate(sources):

        def report(documents: int, i: int = i, name: str = name) -> None:
            progress("preparing data", i, len(sources), f"{name}: {documents:,} documents")

        report(0)
        source = inputs.source(name)
        shards[name] = data.prepare(
            name, source, tokenizer, inputs.data, inputs.recipe.seed,
            others=inputs.recipe.others(source, inputs.data.parent), progress=report,
        )  # fmt: skip
    return shards


def _synth(stage: SynthStage, inputs: StageInputs, progress: Progress, warn: Warn) -> StageResult:
    """Answers are kept beside the rows, and asked for only once, even if the stage is made again.
    It is not done as long as one is missing."""
    revisions = _revisions(inputs, stage.prompts)
    reads, digests = _prompts(inputs, stage.prompts)
    known = inputs.data.parent / inputs.name / ANSWERS
    if known.exists() and not (inputs.work / ANSWERS).exists():
        shutil.copyfile(known, inputs.work / ANSWERS)
    outcome = Synthesis(
        stage,
        usable_prompts(reads, warn),
        inputs.recipe.seed,
        inputs.work,
        lambda done, of: progress("asking", done, of, stage.teacher.model),
        inputs.parents,
    ).execute()
    if outcome.unanswered:
        raise UserError(f"{outcome.unanswered} requests without an answer; run again to ask them")
    if not outcome.rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in outcome.dropped.items())
        raise UserError(f"no answer was kept ({reasons})")

    def save(out: Path) -> None:
        outcome.write(out / KEPT)
        shutil.copyfile(inputs.work / ANSWERS, out / ANSWERS)

    return StageResult(save, digests, revisions, metrics=outcome.record())


def _prompts(inputs: StageInputs, sources: Iterable[str]) -> tuple[list[Read], dict[str, str]]:
    """The rows of sources, and a checksum of each source's."""
    reads: list[Read] = []
    digests = {}
    for name in sources:
        mine = list(raw_rows(inputs.source(name), inputs.recipe.seed))
        digests[name] = sha256_json([[read.row, read.fault] for read in mine])
        reads += mine
    return reads, digests


def digests(
    stage: Stage, inputs: StageInputs, sources: list[str], progress: Progress
) -> dict[str, str]:
    """Checksums of what `sources` of a finished stage hold now."""
    if isinstance(stage, SynthStage):
        return _prompts(inputs, sources)[1]
    folder = inputs.parent or inputs.tokenizer
    assert folder is not None
    shards = _prepare(inputs, sources, load_tokenizer(inputs.recipe, folder), progress)
    return {name: shard.digest for name, shard in shards.items()}


def file_revision(source: Source | SynthSource) -> Any:
    """Sizes and times of a source's files; None where it is none of files, or they are gone."""
    if not isinstance(source, FileSource):
        return None
    try:
        return fingerprint(source)
    except UserError:
        return None


def _revisions(inputs: StageInputs, sources: Iterable[str]) -> dict[str, Any]:
    found = {name: file_revision(inputs.recipe.sources[name]) for name in sources}
    return {name: revision for name, revision in found.items() if revision is not None}


def _train(
    stage: TrainStage, inputs: StageInputs, workers: WorkerGroup, progress: Progress, warn: Warn
) -> StageResult:
    folder = inputs.parent or inputs.tokenizer
    assert folder is not None  # the recipe's check
    tokenizer = load_tokenizer(inputs.recipe, folder)
    revisions = _revisions(inputs, stage.mixture)
    config = _model_config(stage, inputs, tokenizer)
    shards = _prepare(inputs, list(stage.mixture), tokenizer, progress)
    for shard in shards.values():
        for line in notes(shard.meta):
            warn(f"{shard.name}: {line}")

    positions: dict[str, int] = {}
    optimizer = None
    if stage.carry:
        assert inputs.parent is not None
        record = read_json(inputs.parent / "stage.json")
        if "optimizer" in stage.carry:
            optimizer = str(inputs.parent / "optimizer.safetensors")
        if "data" in stage.carry:
            positions = record["positions"]
    job = TrainJob(
        stage=stage,
        parent=str(inputs.parent) if inputs.parent else None,
        model=config,
        tokenizer=str(folder),
        shards={name: str(shard.folder) for name, shard in shards.items()},
        start={name: positions.get(name, 0) for name in shards},
        optimizer=optimizer,
        work=str(inputs.work),
        seed=inputs.recipe.seed,
        threads=inputs.recipe.threads,
        parallel=stage.parallel or inputs.recipe.parallel,
        states=inputs.recipe.states_of(inputs.name),
    )

    def on_step(record: StepRecord, steps: int) -> None:
        progress("training", record.step, steps, f"loss {record.loss:.3f}")
        if inputs.trackers is not None and (record.is_look or keeps(record.step, steps)):
            inputs.trackers.log(inputs.name, record.step, record.row())

    seed = inputs.recipe.seed
    score = scorer(stage.scores, seed, progress) if stage.scores is not None else None
    result = workers.train(job, on_step, warn, score)

    def save(out: Path) -> None:
        result.save(tokenizer, out, parent=inputs.parent, base=_name_of_base(inputs))
        shutil.copyfile(inputs.work / "metrics.jsonl", out / "metrics.jsonl")

    used = result.used
    return StageResult(
        save=save,
        sources={name: shard.digest for name, shard in shards.items()},
        revisions=revisions,
        metrics=result.metrics,
        tokens=used,
        positions=positions | {s: positions.get(s, 0) + n for s, n in used.items()},
    )


def _name_of_base(inputs: StageInputs) -> str | None:
    """What an adapter says it is for: the Hub's name, or else the parent's folder."""
    name = next(iter(inputs.parents), "")
    if name in inputs.recipe.stages or name not in checkpoint.SHORT_NAMES:
        return str(inputs.parent and inputs.parent.resolve())
    return checkpoint.SHORT_NAMES[name]


def _model_config(stage: TrainStage, inputs: StageInputs, tokenizer: Tokenizer) -> ModelConfig:
    """The shape in force: the parent's config.json, with the stage's theta and longer context."""
    if inputs.parent is None:
        assert inputs.recipe.model is not None
        config = inputs.recipe.model.config(tokenizer.vocab_size, stage.context)
    else:
        config = checkpoint.load_config(inputs.parent)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{inputs.parent}: its tokenizer has {tokenizer.vocab_size} entries, the model "
            f"embeddings for {config.vocab_size}; take the added tokens out of tokenizer.json, "
            "or extend the model"
        )
    if stage.context > config.context and stage.rope_theta is None:
        raise UserError(
            f"context: rows of {stage.context} tokens are longer than the "
            f"model's {config.context}; shorten them, or extend the model with rope_theta"
        )
    return replace(
        config,
        rope_theta=stage.rope_theta or config.rope_theta,
        context=max(stage.context, config.context),
    )


def _merge(stage: MergeStage, inputs: StageInputs) -> StageResult:
    weights = {inputs.parents[name]: weight for name, weight in stage.from_.items()}
    return StageResult(lambda out: merge.merge(weights, out))


def _eval(stage: EvalStage, inputs: StageInputs, progress: Progress) -> StageResult:
    sources = sources_of(stage, inputs.recipe)
    any_model = next(iter(inputs.parents.values()))
    revisions = _revisions(inputs, sources)
    shards = _prepare(inputs, sources, load_tokenizer(inputs.recipe, any_model), progress)
    heldout = {
        name: data.Shard.open(shard.folder, split="heldout") for name, shard in shards.items()
    }
    card = evaluate(stage, inputs.parents, heldout, inputs.recipe.seed, progress)
    samples, answers, panel = (card.pop(part) for part in ("samples", "answers", "panel"))

    def save(out: Path) -> None:
        write_json(out / "scorecard.json", card)
        if panel is not None:
            panel.write(out)
        write_json(out / "samples.json", samples)
        write_json(out / "answers.json", answers)

    held = sum(claim["verdict"] == "holds" for claim in card["claims"])
    return StageResult(
        save=save,
        sources={name: shard.digest for name, shard in shards.items()},
        revisions=revisions,
        metrics={"claims": len(card["claims"]), "hold": held},
    )


def _benchmark(stage: BenchmarkStage, inputs: StageInputs, progress: Progress) -> StageResult:
    from smollm3.eval.compare import panel_of
    from smollm3.eval.run import Outcome, benchmark  # PyTorch and the engine

    @dataclass
    class View:
        name: str

        def progress(self, what: str, done: int, total: int, fresh: int) -> None:
            progress("evaluating", done, total, f"{what} of {self.name}")

    outcomes: list[Outcome] = []
    for name, model in inputs.parents.items():
        items = inputs.work / (f"beside-{ITEMS}" if outcomes else ITEMS)
        outcomes.append(benchmark(stage, model, name, inputs.recipe.seed, items, View(name)))

    def save(out: Path) -> None:
        outcomes[0].write(out)
        for other in outcomes[1:]:
            other.write(out / BESIDE)
            panel_of(read_results(out / BESIDE), read_results(out)).write(out)

    return StageResult(save, metrics={"tasks": len(outcomes[0].found["results"])})


def _export(stage: ExportStage, inputs: StageInputs) -> StageResult:
    parent = inputs.parent
    assert parent is not None
    card = card_of(inputs, stage.license)

    def save(out: Path) -> None:
        for to in stage.to:
            name = to.replace(":", "-")
            export(parent, to, out / (f"{name}.gguf" if to.startswith("gguf") else name), card=card)

    return StageResult(save, metrics={"formats": ", ".join(stage.to)})
