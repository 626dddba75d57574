"""`smollm3 chat`, `smollm3 generate`, `smollm3 bench`: a model at work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from smollm3.cli.fields import ModelCommand
from smollm3.cli.options import (
    BUDGET,
    MODEL,
    MODEL_HELP,
    SYSTEM,
    THINK,
    bench_options,
    constraint_options,
    engine_options,
    read_constraint,
    sampling_options,
    spelled,
    tool_options,
)
from smollm3.errors import UserError


@click.command(cls=ModelCommand, epilog=MODEL_HELP)
@MODEL
@THINK
@SYSTEM
@BUDGET
@tool_options
@engine_options
@sampling_options
def chat(
    model: str,
    think: bool,
    system: str | None,
    thinking_budget: int | None,
    tools: dict[str, Any],
    sampling: dict[str, Any],
    engine_options: dict[str, Any],
) -> None:
    """Talk to a model; /help says what it understands, Tab folds its reasoning.

    \b
    smollm3 chat runs/nano
    echo "Total of Ana:3 Jan:5?" | smollm3 chat runs/nano --no-think
    smollm3 chat smollm3-3b --python-tools --tool mine.py:search --mcp "npx some-server"
    """
    from smollm3.console.chat import chat_on_console
    from smollm3.infer import SamplingParams, load_engine

    params = SamplingParams(**{"max_tokens": 8192, **sampling})
    with load_engine(model, **engine_options) as engine:
        if tools:
            from smollm3.console.tool_chat import chat_with_tools

            chat_with_tools(engine, params, think, system, thinking_budget, **tools)
        else:
            chat_on_console(engine, params, think, system, thinking_budget)


@click.command(cls=ModelCommand, epilog=MODEL_HELP)
@MODEL
@click.argument("prompt", required=False)
@click.option(
    "--chat",
    "as_chat",
    is_flag=True,
    help="Answer the prompts as a user's messages, with the chat template.",
)
@THINK
@SYSTEM
@click.option(
    "--n", type=int, default=1, show_default=True, help="Number of answers to each prompt."
)
@click.option(
    "--input",
    "input_file",
    metavar="FILE",
    help="File of requests, one JSON object on each line; - is standard input.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File for the answers; run again, it does only what is missing.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Maximum number of answers of --input in progress at once.",
)
@BUDGET
@constraint_options
@engine_options
@sampling_options
def generate(
    model: str,
    prompt: str | None,
    as_chat: bool,
    think: bool,
    system: str | None,
    n: int,
    input_file: str | None,
    output: Path | None,
    concurrency: int,
    thinking_budget: int | None,
    constraint: dict[str, Any],
    sampling: dict[str, Any],
    engine_options: dict[str, Any],
) -> None:
    """Continue PROMPT, or with --chat answer it; or do so for every line of a file.

    A line of --input is {"prompt": ...} or {"messages": [...]}, with an id and sampling options of
    its own if wanted. Stopped at any moment and started again, it does only what is missing.

    \b
    smollm3 generate runs/nano/stage1 "def read_file("
    smollm3 generate runs/nano/sft "Total of Ana:3 Jan:5?" --chat --no-think
    smollm3 generate runs/nano/sft --input questions.jsonl --output answers.jsonl --chat
    """
    if (prompt is None) == (input_file is None) or (output is None) != (input_file is None):
        raise UserError("give either PROMPT, or both --input FILE and --output FILE")
    if prompt == "-":
        prompt = _standard_input()
    from smollm3.batch.run import BatchSettings
    from smollm3.console.generate import batch_on_console, generate_on_console
    from smollm3.infer import SamplingParams, load_engine

    settings = BatchSettings(
        SamplingParams(n=n, **sampling),
        read_constraint(constraint),
        thinking_budget,
        as_chat,
        think,
        system,
    )
    with load_engine(model, **engine_options) as engine:
        if prompt is not None:
            generate_on_console(engine, prompt, settings)
            return
        assert input_file
        assert output
        settings = settings.of(engine)
        code = batch_on_console(engine, input_file, output, settings, concurrency)
    sys.exit(code)


@click.command(epilog=MODEL_HELP)
@click.argument("model", metavar="MODEL", required=False)
@click.option(
    "--shape",
    metavar="NAME[:KIND]",
    help="Measure random weights of this shape instead of a model, as smollm3-3b:q4_0.",
)
@click.option(
    "--long",
    type=click.IntRange(1),
    metavar="TOKENS",
    help="Length of the long prompt. [default: 4096]",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="Times that each measurement is repeated.",
)
@click.option(
    "--tokens",
    type=click.IntRange(2),
    default=32,
    show_default=True,
    metavar="N",
    help="Number of tokens of each answer that is timed.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="Also write the results to this file.",
)
@bench_options
def bench(
    model: str | None,
    shape: str | None,
    long: int | None,
    repeat: int,
    tokens: int,
    json_file: Path | None,
    engine_options: dict[str, Any],
) -> None:
    """Measure how fast a model runs here: prefill, decoding, start, memory.

    Speculative decoding is off unless there is a --draft: with random prompts it says nothing.

    \b
    smollm3 bench runs/nano
    smollm3 bench --shape smollm3-3b:q4_0
    """
    if (model is None) == (shape is None):
        raise UserError("give either MODEL or --shape NAME[:KIND]")
    from smollm3.bench.measure import Bench, bench_on_console, bytes_of, start_seconds
    from smollm3.bench.shapes import make_shape
    from smollm3.checkpoint import locate
    from smollm3.files import cache_folder, write_json
    from smollm3.infer import Engine, load_engine

    path = locate(model) if model else make_shape(str(shape), cache_folder() / "shapes")
    plain = {**engine_options, "speculation": "draft" in engine_options}

    def make(engine: Engine, told: Callable[[str], None]) -> Bench:
        longest = long or min(4096, (engine.config.context - tokens) // 2)
        return Bench(engine, bytes_of(path), longest, repeat, tokens, told)

    found = bench_on_console(
        lambda: load_engine(path, **plain),
        make,
        lambda: start_seconds(str(path), spelled(plain)),
        model or str(shape),
    )
    if json_file is not None:
        write_json(json_file, found)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as e:
        raise UserError(f"standard input: not UTF-8 ({e.reason})") from None
