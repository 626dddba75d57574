"""`smollm3 serve`: a model over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3.cli.fields import ModelCommand, with_fields
from smollm3.cli.options import MODEL, MODEL_HELP, served_engine_options
from smollm3.errors import UserError

if TYPE_CHECKING:
    from smollm3.serve.settings import Settings


@click.command(cls=ModelCommand, epilog=MODEL_HELP)
@MODEL
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="YAML file of settings: those below and more, see docs/serving.md.",
)
@click.option("--quiet", is_flag=True, help="Do not log requests.")
@served_engine_options
@with_fields("given", "smollm3.serve.settings:Settings")
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
    smollm3 serve smollm3-3b --adapter mine --adapter other=runs/other/sft/adapter
    smollm3 serve smollm3-3b --engine vllm     hands over to vLLM, installed apart
    """
    settings = read_settings(config, given)
    if engine_options.get("engine") == "vllm":
        from smollm3.checkpoint import locate
        from smollm3.serve.vllm import become_vllm

        options = {key: value for key, value in engine_options.items() if key != "engine"}
        become_vllm(locate(model), Path(model).name, settings, options)
    try:
        from smollm3.serve.run import run
    except ModuleNotFoundError as e:
        raise UserError(f"serving needs {e.name}: pip install 'smollm3[server]'") from None
    from smollm3.infer import load_engine

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("smollm3.serve").setLevel(logging.INFO)
    if quiet:
        logging.getLogger("smollm3.serve.requests").setLevel(logging.WARNING)
    run(lambda: load_engine(model, **engine_options), settings, Path(model).name)


def read_settings(config: Path | None, given: dict[str, Any]) -> Settings:
    """Those of the file, and over them those of the command line."""
    from smollm3.config import Document, check, read_document
    from smollm3.files import read_text
    from smollm3.serve.settings import Settings

    file = Document("", {})
    if config is not None:
        what = "must be a mapping of settings, as port: 9000"
        file = read_document(read_text(config), str(config), what)
    typed = Document("", given)
    return check(
        Settings,
        file.values | given,
        lambda path: (typed if path[0] in given else file).place(path),
    )
