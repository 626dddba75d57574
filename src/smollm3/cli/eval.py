"""`smollm3 eval`: scores on benchmarks, and their comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from smollm3.cli.options import MODEL, MODEL_HELP, SUITE, RunGroup, engine_options


@click.command("run", epilog=MODEL_HELP)
@MODEL
@click.option(
    "--tasks", metavar="NAMES", help="Tasks of lm-evaluation-harness, or of ours, by commas."
)
@SUITE
@click.option("--data", type=click.Path(path_type=Path), help="A folder of data sets [the Hub].")
@click.option("--out", type=click.Path(path_type=Path), help="Results; resumable [evals/MODEL].")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Items of each task.")
@click.option("--few-shot", type=click.IntRange(0), metavar="N", help="Examples [the task's].")
@click.option("--chat/--no-chat", default=None, help="In the model's chat template [the suite's].")
@click.option("--think/--no-think", default=None, help="Reason before answering; with --chat.")
@click.option("--system", metavar="TEXT", help="System prompt; with --chat.")
@click.option("--thinking-budget", type=click.IntRange(1), metavar="TOKENS", help="Of reasoning.")
@click.option("--max-tokens", type=click.IntRange(1), help="Of each answer [the task's].")
@click.option("--sample/--greedy", default=None, help="The model's own sampling [the suite's].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--lengths", metavar="TOKENS", help="Of RULER's prompts, by commas [4096].")
@click.option("--essays", type=click.Path(path_type=Path), help="RULER's: a folder of .txt files.")
@click.option("--squad", type=click.Path(path_type=Path), help="RULER's: a file of SQuAD.")
@click.option("--hotpotqa", type=click.Path(path_type=Path), help="RULER's: a file of HotpotQA.")
@click.option("--judge", metavar="URL[#MODEL]", help="Who rates answers: an OpenAI-like server.")
@engine_options
def evaluate(
    model: str,
    tasks: str | None,
    suite: str | None,
    data: Path | None,
    out: Path | None,
    limit: int | None,
    few_shot: int | None,
    lengths: str | None,
    essays: Path | None,
    squad: Path | None,
    hotpotqa: Path | None,
    judge: str | None,
    engine_options: dict[str, Any],
    **asked: Any,
) -> None:
    """Score MODEL on benchmarks, by lm-evaluation-harness's own tasks.

    MODEL may also be the URL of an OpenAI-compatible server. Stopped at any moment and started
    again, it does only what is missing.

    \b
    smollm3 eval smollm2-135m --tasks hellaswag,piqa --data my/data
    smollm3 eval runs/mine --suite base --limit 200
    smollm3 eval http://127.0.0.1:8000/v1 --suite instruct --think
    smollm3 eval compare evals/a evals/b
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when it is first imported
    from smollm3.eval.launch import launch
    from smollm3.eval.ruler import Files

    launch(
        model,
        tasks=tasks,
        suite=suite,
        data=data,
        out=out,
        limit=limit,
        few_shot=few_shot,
        lengths=lengths,
        files=Files(essays, squad, hotpotqa),
        judge=judge,
        asked=asked,
        engine_options=engine_options,
    )


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write it here too.")
@click.option("--plot", type=click.Path(path_type=Path), help="An SVG of scores, or RULER's map.")
@click.option("--against", metavar="NAME", help="The published model [by MODEL's name].")
def compare(
    results: tuple[Path, ...], json_file: Path | None, plot: Path | None, against: str | None
) -> None:
    """Compare evaluations: with what is published, and with each other item by item.

    RESULTS are folders that `smollm3 eval` wrote, or results.json files of the harness.
    """
    from smollm3.eval.compare import compare_on_console

    compare_on_console(results, json_file, plot, against)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--items",
    type=click.Path(path_type=Path),
    required=True,
    help="A data set's file: JSON lines, an item each.",
)
def contamination(files: tuple[Path, ...], items: Path) -> None:
    """Tell which items of a data set stand in training data: 13 words in a row.

    FILES are texts or JSON lines.

    \b
    smollm3 eval contamination corpus/*.jsonl.gz --items data/hellaswag/validation.jsonl.gz
    """
    from smollm3.eval.contamination import ItemIndex, documents

    index = ItemIndex(documents([items]))
    found = index.overlap(documents(files))
    click.echo(
        f"{len(found.items):,} of {found.of_items:,} items stand in {found.documents:,} of "
        f"{found.of_documents:,} documents; {index.short:,} items are too short to tell"
    )
    if found.items:
        click.echo("items: " + ", ".join(map(str, found.items)))


@click.group("eval", cls=RunGroup, context_settings={"ignore_unknown_options": True})
def evaluation() -> None:
    """Score a model on benchmarks: smollm3 eval MODEL --tasks hellaswag,piqa; or compare scores.

    \b
    smollm3 eval run --help       all options of smollm3 eval MODEL
    smollm3 eval compare A B
    smollm3 eval contamination FILES --items FILE
    """


evaluation.add_command(evaluate)
evaluation.add_command(compare)
evaluation.add_command(contamination)
