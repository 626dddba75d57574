"""Options that are a model's fields: what is given, what the help says, and nothing loaded early."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from smollm3.cli.fields import ModelCommand, with_fields
from smollm3.config import StrictModel
from smollm3.option import Option


class Server(StrictModel):
    host: Annotated[str, Option("Address.", metavar="ADDRESS")] = "here"
    port: Annotated[int, Field(ge=0), Option("Port.")] = 80
    share: Annotated[Annotated[float, Field(gt=0)] | None, Option("Share.", default="all")] = None
    names: Annotated[tuple[str, ...], Option("Name.", "--name")] = ()
    think: Annotated[bool, Option("Think.")] = True
    open: Annotated[bool, Option("Open.")] = False
    hidden: int = 3


@dataclass
class Sampling:
    seed: Annotated[int, Option("Seed.")] = 0
    penalty: Annotated[float, Option("Penalty.")] = 0.5
    stop: Annotated[str | tuple[str, ...], Option("Stop.", repeated=True)] = ()


@click.command(cls=ModelCommand)
@click.option("--own")
@with_fields("sampling", f"{__name__}:Sampling")
@with_fields("settings", f"{__name__}:Server")
def command(own, sampling, settings):
    click.echo(repr((own, sampling, settings)))


def run(*words):
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), (None, {}, {})),
        (("--own", "x", "--seed", "0"), ("x", {"seed": 0}, {})),
        (("--no-think", "--open"), (None, {}, {"think": False, "open": True})),
        (("--think", "--port", "0"), (None, {}, {"think": True, "port": 0})),
        (("--name", "a", "--name", "b", "--share", ".5"), (None, {}, {"names": ("a", "b"), "share": 0.5})),
        (("--stop", "x", "--stop", "y", "--penalty", "1"), (None, {"stop": ("x", "y"), "penalty": 1.0}, {})),
    ],
)  # fmt: skip
def test_only_what_was_given_is_given(words, expected):
    assert eval(run(*words)) == expected


def test_defaults_and_helps_are_the_models():
    words = " ".join(run("--help").split())
    for line in (
        "--host ADDRESS Address. [default: here]",
        "--port INTEGER Port. [default: 80]",
        "--share FLOAT Share. [default: all]",
        "--name TEXT Name.",
        "--think / --no-think Think. [default: think]",
        "--open Open.",
        "--seed INTEGER Seed. [default: 0]",
        "--penalty FLOAT Penalty. [default: 0.5]",
        "--stop TEXT Stop.",
    ):
        assert line in words
    assert "hidden" not in words


def test_the_list_of_commands_loads_no_model():
    code = (
        "import sys; from smollm3.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "assert not {'pydantic', 'torch', 'numpy', 'smollm3.config'} & set(sys.modules)\n"
        "cli.main(['serve', '--help'], standalone_mode=False)\n"
        "cli.main(['generate', '--help'], standalone_mode=False)\n"
        "assert 'pydantic' in sys.modules and not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
