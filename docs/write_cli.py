"""Prints docs/cli.md, the --help of every command: `make cli-docs` writes it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import click

os.environ["NO_COLOR"] = "1"
WIDTH = 100
HEAD = """# Command line

What each command's `--help` says, written by `make cli-docs`; a test compares it with the program.
"""


def pages(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    text = re.sub(r" +$", "", command.get_help(context), flags=re.MULTILINE)
    yield f"\n## {context.command_path}\n\n```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from pages(found, below, context)


def reference() -> str:
    from smollm3.cli import cli

    return HEAD + "".join(pages(cli, "smollm3", None))


if __name__ == "__main__":
    print(reference(), end="")
