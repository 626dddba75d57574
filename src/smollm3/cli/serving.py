"""`smollm3 serve`: a model over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3.cli.options import MODEL, MODEL_HELP, collected, engine_options
from smollm3.errors import UserError

if TYPE_CHECKING:
    from smollm3.serve.settings import Settings

SETTINGS = {
    "host": click.option(
        "--host", metavar="ADDRESS", help="Address to listen on. [default: 127.0.0.1]"
    ),
    "port": click.option(
        "--port",
        type=click.IntRange(0, 65_535),
        help="Port to listen on; 0 takes any free one. [default: 8000]",
    ),
    "name": click.option(
        "--name", metavar="ID", help="The model's id in the API. [default: the name in MODEL]"
    ),
    "aliases": click.option(
        "--alias",
        "aliases",
        multiple=True,
        metavar="ID",
        help="Another id for the model; * stands for anything. Can be given more than once.",
    ),
    "api_key_file": click.option(
        "--api-key-file",
        metavar="FILE",
        help="File of API keys, one on each line; one more is read from SMOLLM3_API_KEY.",
    ),
    "allowed_origins": click.option(
        "--allow-origin",
        "allowed_origins",
        multiple=True,
        metavar="ORIGIN",
        help="Let web pages of this origin use the API, as https://example.org. "
        "Can be given more than once.",
    ),
    "tools": click.option(
        "--tool",
        "tools",
        multiple=True,
        metavar="MODULE:NAME",
        help="Run this Python function for clients. Can be given more than once.",
    ),
    "mcp": click.option(
        "--mcp",
        multiple=True,
        metavar="COMMAND",
        help="Run the tools of this MCP server, a command or a URL. Can be given more than once.",
    ),
    "python_tools": click.option(
        "--python-tools", is_flag=True, default=None, help="Run the model's Python in a sandbox."
    ),
    "think": click.option(
        "--think/--no-think",
        default=None,
        help="Reason before answering where a request does not say. [default: think]",
    ),
}


@click.command(epilog=MODEL_HELP)
@MODEL
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="YAML file of settings, described in docs/serving.md.",
)
@click.option("--quiet", is_flag=True, help="Do not log requests.")
@collected("given", SETTINGS)
@engine_options
def serve(
    model: str,
    config: Path | None,
    quiet: bool,
    given: dict[str, Any],
    engine_options: dict[str, Any],
) -> None:
    """Serve a model to OpenAI's and Anthropic's clients, with a chat page at /.

    \b
    smollm3 serve runs/nano
    smollm3 serve smollm3-3b --port 9000 --alias "gpt-*"
    smollm3 serve smollm3-3b --engine vllm     hands over to vLLM, installed apart
    """
    try:
        from smollm3.serve.run import run
    except ModuleNotFoundError as e:
        raise UserError(f"serving needs {e.name}: pip install 'smollm3[server]'") from None
    from smollm3.infer import load_engine

    settings = read_settings(config, given)
    if engine_options.get("engine") == "vllm":
        from smollm3.checkpoint import locate
        from smollm3.serve.vllm import become_vllm

        options = {key: value for key, value in engine_options.items() if key != "engine"}
        become_vllm(locate(model), Path(model).name, settings, options)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("smollm3.serve").setLevel(logging.INFO)
    if quiet:
        logging.getLogger("smollm3.serve.requests").setLevel(logging.WARNING)
    run(lambda: load_engine(model, **engine_options), settings, Path(model).name)


def read_settings(config: Path | None, given: dict[str, Any]) -> Settings:
    """Those of the file, and over them those of the command line."""
    from pydantic import ValidationError

    from smollm3.files import read_text
    from smollm3.recipe.load import suggestion
    from smollm3.recipe.yaml import parse_yaml
    from smollm3.serve.settings import Settings

    raw, lines = parse_yaml(read_text(config), str(config)) if config else ({}, {})
    if not isinstance(raw, dict):
        raise UserError(f"{config}: must be a mapping of settings, as port: 9000")
    try:
        return Settings.model_validate(raw | given)
    except ValidationError as e:
        error = e.errors()[0]
        key = str(error["loc"][0])
        line = f":{lines[key,]}" if (key,) in lines else ""
        where = f"{config}{line}: {key}" if key not in given else key
        if error["type"] == "extra_forbidden":
            known = suggestion(key, Settings.model_fields)
            raise UserError(f"{where}: no such setting{known}") from None
        said = error["msg"].replace("tuple", "list")
        raise UserError(f"{where}: {said}, not {error['input']!r}") from None
