"""A conversation on the terminal: answers stream, reasoning is dimmed."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from smollm3.infer.engine import Engine
from smollm3.infer.params import SamplingParams

HELP = "/think and /no_think switch modes, /new starts over, /exit ends"


def chat_on_console(
    engine: Engine, params: SamplingParams, think: bool, system: str | None
) -> None:
    """Read lines from standard input until its end or /exit, and answer each."""
    interactive = sys.stdin.isatty()
    start: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    if interactive:
        click.echo(click.style(HELP, dim=True))
    while True:
        if interactive:
            click.echo(click.style("> ", bold=True), nl=False)
        line = sys.stdin.readline()
        if not line:
            return
        match text := line.strip():
            case "":
                continue
            case "/exit":
                return
            case "/new":
                messages = list(start)
                continue
            case "/think" | "/no_think":
                think = text == "/think"
                click.echo(click.style(f"mode: {text}", dim=True))
                continue
        messages.append({"role": "user", "content": text})
        messages.append(_answer(engine, messages, params, think, interactive))


def _answer(
    engine: Engine,
    messages: list[dict[str, Any]],
    params: SamplingParams,
    think: bool,
    interactive: bool,
) -> dict[str, Any]:
    """Stream one answer to the terminal and return it as a message for the history."""
    answer = ""
    started = time.monotonic()
    for piece in engine.chat_stream(messages, enable_thinking=think, params=params):
        answer += piece
        thinking = answer.lstrip().startswith("<think>") and "</think>" not in answer
        click.echo(click.style(piece, dim=True) if thinking and interactive else piece, nl=False)
    click.echo()
    if interactive:
        seconds = time.monotonic() - started
        rate = len(engine.tokenizer.encode_markup(answer)) / max(seconds, 1e-9)
        click.echo(click.style(f"{rate:.0f} tokens/s", dim=True))
    return {"role": "assistant", "content": answer}
