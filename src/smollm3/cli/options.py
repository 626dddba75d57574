"""Options that several commands share, collected into one argument each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from smollm3.cli.fields import with_fields
from smollm3.errors import UserError

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

MODEL = click.argument("model", metavar="MODEL")
MODEL_HELP = """
MODEL is a folder (a run's folder means its final model), a .gguf file, a Hub id with an optional
@revision, or a short name (smollm3-3b, smollm2-135m).
"""
ENGINE = {
    "engine": click.option(
        "--engine",
        metavar="NAME",
        help="auto, native, torch or mlx [auto: native on a CPU that has it].",
    ),
    "device": click.option(
        "--device", metavar="DEVICE", help="cpu, cuda, mps [cuda where there is one]."
    ),
    "dtype": click.option("--dtype", metavar="TYPE", help="float32, bfloat16, float16."),
    "quantize": click.option(
        "--quantize", metavar="TYPE", help="int4 (CUDA) or int8 weights on PyTorch."
    ),
    "threads": click.option(
        "--threads", type=click.IntRange(1), metavar="N", help="Of the CPU [one a core]."
    ),
    "context": click.option(
        "--context",
        type=click.IntRange(1),
        metavar="TOKENS",
        help="Longer than trained: turns on YaRN.",
    ),
    "cache_type": click.option(
        "--cache-type",
        metavar="TYPE",
        help="Of keys and values: bf16, int8 (half the memory), f32.",
    ),
    "weights_cache": click.option(
        "--no-cache",
        "weights_cache",
        flag_value=False,
        default=None,
        help="Pack the weights anew instead of keeping them packed on the disk.",
    ),
    "draft": click.option(
        "--draft", metavar="MODEL", help="A small model whose guesses this one checks."
    ),
    "speculation": click.option(
        "--no-speculation",
        "speculation",
        flag_value=False,
        default=None,
        help="Guess no tokens ahead: the same answers.",
    ),
}
THINK = click.option("--think/--no-think", default=True, help="Reason before answering.")
SYSTEM = click.option("--system", metavar="TEXT", help="System prompt.")
BUDGET = click.option(
    "--thinking-budget", type=int, metavar="TOKENS", help="Of reasoning, which is then closed."
)
CONSTRAINT = {
    "json_schema": click.option(
        "--json-schema", metavar="FILE", help="The answer is JSON that this schema allows."
    ),
    "regex": click.option("--regex", metavar="PATTERN", help="It is what this matches."),
    "grammar": click.option(
        "--grammar", metavar="FILE", help="It is a text of this grammar (llguidance's Lark)."
    ),
}


def collected(name: str, options: Mapping[str, Decorator]) -> Decorator:
    """Add the options to a command, which gets those that were given as the dict `name`."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            chosen = {key: values.pop(key) for key in options}
            given = {key: value for key, value in chosen.items() if value not in (None, ())}
            return function(**values, **{name: given})

        decorated: Command = command
        for option in reversed(list(options.values())):
            decorated = option(decorated)
        return decorated

    return decorate


TOOLS: dict[str, Decorator] = {
    "tool": click.option(
        "--tool", multiple=True, metavar="MODULE:NAME", help="A function to call; repeatable."
    ),
    "mcp": click.option(
        "--mcp", multiple=True, metavar="COMMAND", help="An MCP server, or its URL; repeatable."
    ),
    "python_tools": click.option(
        "--python-tools",
        is_flag=True,
        default=None,
        help="It may run Python, isolated, in which tools are functions.",
    ),
    "unsafe_python_tools": click.option(
        "--unsafe-python-tools",
        is_flag=True,
        default=None,
        help="The same as you, on this computer; asks each time.",
    ),
}
engine_options = collected("engine_options", ENGINE)
tool_options = collected("tools", TOOLS)
sampling_options = with_fields("sampling", "smollm3.infer.params:SamplingParams")
bench_options = collected(
    "engine_options", {key: option for key, option in ENGINE.items() if key != "speculation"}
)
constraint_options = collected("constraint", CONSTRAINT)


def read_constraint(given: dict[str, Any]) -> Any:
    """What the answer is to be, from the options; None without any."""
    from smollm3.files import read_json, read_text
    from smollm3.infer.grammars import Grammar, Json, Regex

    if len(given) > 1:
        raise UserError("give one of --json-schema, --regex and --grammar")
    if "json_schema" in given:
        return Json(read_json(Path(given["json_schema"])))
    if "grammar" in given:
        return Grammar(read_text(Path(given["grammar"])))
    return Regex(given["regex"]) if given else None


def spelled(options: dict[str, Any]) -> list[str]:
    """The command line that says the same of the engine."""
    words: list[str] = []
    for key, value in options.items():
        match key, value:
            case "weights_cache", _:
                words.append("--no-cache")
            case "speculation", _:
                words += [] if value else ["--no-speculation"]
            case _:
                words += [f"--{key.replace('_', '-')}", str(value)]
    return words
