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
        help="What runs the model: native, torch or mlx. [default: auto, which is native on a CPU "
        "where the kernels are installed, else torch]",
    ),
    "device": click.option(
        "--device",
        metavar="DEVICE",
        help="Device that runs the model: cpu, cuda or mps. [default: cuda where there is one]",
    ),
    "dtype": click.option(
        "--dtype",
        metavar="TYPE",
        help="Type that the model computes in: float32, bfloat16 or float16.",
    ),
    "quantize": click.option(
        "--quantize",
        metavar="TYPE",
        help="Quantize the weights on PyTorch: int8, or int4 on CUDA.",
    ),
    "threads": click.option(
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        help="Number of CPU threads. [default: one for each core]",
    ),
    "context": click.option(
        "--context",
        type=click.IntRange(1),
        metavar="TOKENS",
        help="Context length; one longer than the model was trained for turns on YaRN.",
    ),
    "kv_cache_dtype": click.option(
        "--kv-cache-dtype",
        metavar="TYPE",
        help="Type of the KV cache: bf16, int8 (half the memory) or f32. Native engine only.",
    ),
    "weight_cache": click.option(
        "--no-weight-cache",
        "weight_cache",
        flag_value=False,
        default=None,
        help="Pack the weights at every start instead of keeping them packed on the disk.",
    ),
    "adapter": click.option(
        "--adapter",
        metavar="FOLDER",
        help="Answer with this LoRA adapter beside the model: its folder, or a fine-tune's.",
    ),
    "draft": click.option(
        "--draft",
        metavar="MODEL",
        help="A small model of the same vocabulary for speculative decoding.",
    ),
    "speculation": click.option(
        "--no-speculation",
        "speculation",
        flag_value=False,
        default=None,
        help="Turn speculative decoding off; the answers are the same.",
    ),
}
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one value of the recipe; repeatable.",
)
SUITE = click.option(
    "--suite",
    metavar="NAME",
    help="A table of the report (base, instruct, multilingual, long, tools) or of SmolLM2 "
    "(smollm2-card, smollm2-base-card, smollm2-harness).",
)
WATCH = click.option(
    "--watch", is_flag=True, help="Show the run in a browser of this computer meanwhile."
)
THINK = click.option(
    "--think/--no-think", default=True, help="Reason before answering, or answer at once."
)
SYSTEM = click.option("--system", metavar="TEXT", help="System prompt of the conversation.")
BUDGET = click.option(
    "--thinking-budget",
    type=int,
    metavar="TOKENS",
    help="Maximum number of reasoning tokens, after which the model must answer.",
)
CONSTRAINT = {
    "json_schema": click.option(
        "--json-schema",
        metavar="FILE",
        help="Constrain the answer to JSON that the schema in this file allows.",
    ),
    "regex": click.option(
        "--regex",
        metavar="PATTERN",
        help="Constrain the answer to texts that this pattern matches as a whole.",
    ),
    "grammar": click.option(
        "--grammar",
        metavar="FILE",
        help="Constrain the answer to the grammar in this file (llguidance's Lark).",
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
        "--tool",
        multiple=True,
        metavar="MODULE:NAME",
        help="Let the model call this Python function. Can be given more than once.",
    ),
    "mcp": click.option(
        "--mcp",
        multiple=True,
        metavar="COMMAND",
        help="Let the model call the tools of this MCP server, a command or a URL. "
        "Can be given more than once.",
    ),
    "python_tools": click.option(
        "--python-tools",
        is_flag=True,
        default=None,
        help="Let the model run Python in a sandbox, where the tools are functions.",
    ),
    "unsafe_python_tools": click.option(
        "--unsafe-python-tools",
        is_flag=True,
        default=None,
        help="Let the model run Python as you, without a sandbox; you are asked each time.",
    ),
}
engine_options = collected("engine_options", ENGINE)
served_engine_options = collected(  # a server has many adapters, among its own settings
    "engine_options", {key: option for key, option in ENGINE.items() if key != "adapter"}
)
tool_options = collected("tools", TOOLS)
sampling_options = with_fields("sampling", "smollm3.infer.params:SamplingParams")
bench_options = collected(
    "engine_options", {key: option for key, option in ENGINE.items() if key != "speculation"}
)
constraint_options = collected("constraint", CONSTRAINT)


def read_constraint(given: dict[str, Any]) -> Any:
    """What the answer is to be, from the options; None without any."""
    from smollm3.files import read_json, read_text
    from smollm3.infer.constrain.grammars import Grammar, Json, Regex

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
            case "weight_cache", _:
                words.append("--no-weight-cache")
            case "speculation", _:
                words += [] if value else ["--no-speculation"]
            case _:
                words += [f"--{key.replace('_', '-')}", str(value)]
    return words


class RunGroup(click.Group):
    """A first word that names no subcommand is what `run` takes: `smollm3 eval MODEL`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            return "run", self.commands["run"], args
        return super().resolve_command(ctx, args)
