"""`smollm3 chat`, `smollm3 generate`, `smollm3 bench`: a model at work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from smollm3.cli.options import (
    BUDGET,
    MODEL,
    MODEL_HELP,
    SYSTEM,
    THINK,
    constraint_options,
    engine_options,
    read_constraint,
    sampling_options,
    tool_options,
)
from smollm3.errors import UserError


@click.command(epilog=MODEL_HELP)
@MODEL
@THINK
@SYSTEM
@BUDGET
@tool_options
@sampling_options
@engine_options
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
    from smollm3.infer import SamplingParams, load_engine
    from smollm3.infer.console import chat_on_console

    params = SamplingParams(**{"max_tokens": 8192, **sampling})
    with load_engine(model, **engine_options) as engine:
        if tools:
            from smollm3.agent.console import chat_with_tools

            chat_with_tools(engine, params, think, system, thinking_budget, **tools)
        else:
            chat_on_console(engine, params, think, system, thinking_budget)


@click.command(epilog=MODEL_HELP)
@MODEL
@click.argument("prompt", required=False)
@click.option("--chat", "as_chat", is_flag=True, help="Prompts are a user's messages.")
@THINK
@SYSTEM
@click.option("--n", type=int, default=1, show_default=True, help="Answers to each prompt.")
@click.option("--input", "input_file", metavar="FILE", help="Requests, a JSON object a line.")
@click.option("--output", type=click.Path(path_type=Path), help="Their answers; resumable.")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Answers of --input made together.",
)
@BUDGET
@constraint_options
@sampling_options
@engine_options
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
    from smollm3.checkpoint import locate
    from smollm3.infer import SamplingParams, load_engine
    from smollm3.infer.batch import Settings
    from smollm3.infer.batch_console import batch_on_console, generate_on_console

    settings = Settings(
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
        settings = settings.of(engine, locate(model))
        code = batch_on_console(engine, input_file, output, settings, concurrency)
    sys.exit(code)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as e:
        raise UserError(f"standard input: not UTF-8 ({e.reason})") from None
