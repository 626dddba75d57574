"""The costs of a recipe as a table for the terminal, with what they rest on below."""

from __future__ import annotations

from rich import box
from rich.table import Table

from smollm3.plan.costs import StageCost, kv_bytes_per_token
from smollm3.train.spec import LearningRate
from smollm3.units import count, duration, rate, size


def render(costs: list[StageCost]) -> Table:
    """Each stage with its data, memory and time; what is not known is a question mark."""
    table = Table(box=box.SIMPLE_HEAD, title="what each stage asks for", title_justify="left")
    table.add_column("stage", style="bold", no_wrap=True)
    for column in ("tokens", "steps", "tokens/step"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("learning rate")
    for column in ("memory", "FLOPs", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for cost in costs:
        if cost.kind != "train":
            table.add_row(cost.name, *[""] * 3, f"[dim]{cost.kind}: {cost.note}[/]")
            continue
        about = "≈ " if cost.estimated else ""
        assert cost.lr is not None
        table.add_row(
            cost.name,
            about + count(cost.tokens) if cost.tokens else "?",
            about + f"{cost.steps:,}" if cost.steps else "?",
            f"{cost.tokens_per_step:,}",
            describe_rate(cost.lr),
            size(cost.memory.total) if cost.memory else "?",
            f"{cost.flops:.2e}" if cost.flops else "?",
            about + duration(cost.seconds + cost.preparation) if cost.seconds else "?",
        )
    trained = [cost for cost in costs if cost.kind == "train"]
    known = [cost for cost in trained if cost.seconds is not None]
    more = "" if len(known) == len(trained) else "> "
    table.add_section()
    table.add_row(
        "all",
        more + count(sum(cost.tokens or 0 for cost in costs)) if known else "?",
        *[""] * 4,
        more + f"{sum(cost.flops or 0 for cost in costs):.2e}" if known else "?",
        more + duration(sum(c.preparation + (c.seconds or 0) for c in known)) if known else "?",
    )
    table.caption = "\n".join(_footnotes(costs))
    table.caption_justify = "left"
    return table


def _footnotes(costs: list[StageCost]) -> list[str]:
    models = list(dict.fromkeys(cost.model for cost in costs if cost.model))
    notes = [
        f"model: {model.parameters:,} parameters, {kv_bytes_per_token(model):,} bytes of keys and "
        "values a token (bfloat16)"
        for model in models
    ]
    bases = dict.fromkeys(cost.basis for cost in costs if cost.basis)
    if bases:
        notes.append(f"time: {'; '.join(bases)}; without evaluation, merging and export")
    notes.append("memory: of one process; weights and AdamW in float32")
    splits: dict[str, list[str]] = {}
    for cost in costs:
        if cost.layout is not None and cost.layout.size > 1:
            again = "" if cost.recompute == "none" else f", recompute {cost.recompute}"
            splits.setdefault(f"{cost.layout}{again}", []).append(cost.name)
    notes += [f"split: {split} ({', '.join(names)})" for split, names in splits.items()]
    if any(cost.estimated for cost in costs):
        notes.append("≈: from the size of the files; exact when the data are prepared")
    notes += dict.fromkeys(f"not known: {reason}" for cost in costs for reason in cost.unknown)
    if untimed := [name for cost in costs for name in cost.untimed]:
        more = f" and {len(untimed) - 3} more" if len(untimed) > 3 else ""
        notes.append(f"not known: time to prepare {', '.join(untimed[:3])}{more}")
    return notes


def describe_rate(lr: LearningRate) -> str:
    """'4e-3, 100 warm-up, linear to 0 over the last 600' for a stage's schedule."""
    parts = [rate(lr.peak)]
    if lr.warmup:
        share = isinstance(lr.warmup, float)
        parts.append(f"{lr.warmup:.0%} warm-up" if share else f"{lr.warmup:,} warm-up")
    if lr.decay == "none":
        parts.append("constant")
    else:
        over = f" over the last {lr.decay_steps:,}" if lr.decay_steps else ""
        parts.append(f"{lr.decay} to {rate(lr.peak * lr.end)}{over}")
    return ", ".join(parts)
