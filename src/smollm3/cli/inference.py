"""`smollm3 chat`, `smollm3 generate`: a model at work."""

from __future__ import annotations

import click

from smollm3.cli.options import CONTEXT, MODEL, MODEL_HELP


@click.command(epilog=MODEL_HELP)
@MODEL
@click.option("--think/--no-think", default=True, help="Reason before answering.")
@click.option("--system", help="System prompt.")
@CONTEXT
@click.option("--temperature", type=float, help="0 is greedy [the model's own].")
@click.option("--max-tokens", type=int, default=1024, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def chat(
    model: str,
    think: bool,
    system: str | None,
    context: int | None,
    temperature: float | None,
    max_tokens: int,
    seed: int,
) -> None:
    """Talk to a model. /think and /no_think switch modes, /exit ends.

    \b
    smollm3 chat runs/nano
    echo "Ana:3 Jan:5. Total?" | smollm3 chat runs/nano --no-think
    """
    from smollm3.infer import SamplingParams, load_engine
    from smollm3.infer.console import chat_on_console

    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    chat_on_console(load_engine(model, context=context), params, think, system)


@click.command(epilog=MODEL_HELP)
@MODEL
@click.argument("prompt")
@click.option("--chat", "as_chat", is_flag=True, help="Put the prompt through the chat template.")
@click.option("--think/--no-think", default=True, help="With --chat: reason before answering.")
@CONTEXT
@click.option("--temperature", type=float, help="0 is greedy [the model's own].")
@click.option("--max-tokens", type=int, default=256, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def generate(
    model: str,
    prompt: str,
    as_chat: bool,
    think: bool,
    context: int | None,
    temperature: float | None,
    max_tokens: int,
    seed: int,
) -> None:
    """Continue PROMPT, or with --chat answer it.

    \b
    smollm3 generate runs/nano/stage1 "def read_file("
    smollm3 generate runs/nano/sft "Ana:3 Jan:5. Total?" --chat --no-think
    """
    from smollm3.infer import SamplingParams, load_engine

    engine = load_engine(model, context=context)
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    message = {"role": "user", "content": prompt}
    pieces = (
        engine.chat_stream([message], enable_thinking=think, params=params)
        if as_chat
        else engine.stream(prompt, params)
    )
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
