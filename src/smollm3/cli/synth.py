"""`smollm3 synth`: conversations and preference pairs from a teacher."""

from __future__ import annotations

from pathlib import Path

import click

from smollm3.cli.options import SET


@click.command()
@click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results [synth/NAME].")
@SET
def synth(recipe: Path, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Ask a teacher the prompts of RECIPE (a .yaml file), keep what passes its checks.

    The teacher is any OpenAI-compatible URL, such as `smollm3 serve` gives, or without a URL a
    model that is loaded here. Every answer is kept as it comes: run it again after a kill and
    nothing is asked twice. See docs/data.md.
    """
    from smollm3.config import read_document
    from smollm3.files import read_text
    from smollm3.synth.run import synthesise
    from smollm3.synth.spec import Synthesis

    document = read_document(
        read_text(recipe), str(recipe), "a mapping with the keys name, teacher and prompts"
    )
    for override in overrides:
        document.set(override)
    spec = document.read(Synthesis)
    folder = out or Path("synth") / spec.name
    outcome = synthesise(spec, folder, lambda line: click.echo(line, err=True))
    click.echo(f"{len(outcome.rows)} kept in {folder / spec.name}.jsonl")
    for reason, n in outcome.dropped.items():
        click.echo(f"  {n} dropped: {reason}")
    for target in outcome.targets:
        if target["kept"] < target["rows"]:
            of = ", ".join(
                str(target[key]) for key in ("domain", "language", "mode") if key in target
            )
            click.echo(f"  {target['kept']} of {target['rows']} of the target {of or 'any'}")
    if outcome.unanswered:
        click.echo(f"  {outcome.unanswered} requests without an answer; run again to ask them")
    for role, spent in outcome.ledger.items():
        click.echo(
            f"{role}: {spent['answers']} answers, {spent['input']} + {spent['output']} tokens, "
            f"{spent['money']:.2f} of money"
        )
