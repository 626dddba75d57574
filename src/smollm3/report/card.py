"""README.md of an exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from smollm3.data.spec import HubSource, Source
from smollm3.eval import interval, show
from smollm3.eval.panel import Panel


def model_card(
    name: str,
    lineage: Sequence[dict[str, Any]],
    *,
    license: str | None = None,
    base: str | None = None,
    sources: Mapping[str, Source] | None = None,
    claims: Sequence[dict[str, Any]] = (),
    panels: Sequence[Panel] = (),
    benchmarks: Sequence[tuple[str, ...]] = (),
) -> str:
    """How to use the model, what it was trained on, how good it is, and how it was made.

    lineage: {"stage", "digest"} from the first ancestor to the model itself. license: as the Hub
    spells it. base: the model that training began with. claims: of a score card. panels: of what
    it could before.
    benchmarks: (task, metric, score, interval, items) of each row.
    """
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["smollm3"],
    }
    if license is not None:
        head["license"] = license
    if base is not None and base.count("/") == 1:  # a name on the Hub, which checks it
        head["base_model"] = base
    if repositories := [s.repo for s in (sources or {}).values() if isinstance(s, HubSource)]:
        head["datasets"] = sorted(set(repositories))
    stages = "\n".join(f"| {step['stage']} | `{step['digest'][:12]}` |" for step in lineage)
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---
# {name}

A SmolLM3-shaped language model, made by the recipe `{name}` of the `smollm3` package.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
messages = [{{"role": "user", "content": "Hello"}}]
ids = tokenizer.apply_chat_template(
    messages,
    add_generation_prompt=True,
    enable_thinking=False,
    return_tensors="pt",
    return_dict=True,
)
print(tokenizer.decode(model.generate(**ids)[0]))
```
{_data(sources or {})}{_evaluation(claims)}{_panels(panels)}{_benchmarks(benchmarks)}
## Made by

| stage | checksum |
| --- | --- |
{stages}
"""


def _data(sources: Mapping[str, Source]) -> str:
    if not sources:
        return ""
    rows = "\n".join(
        f"| {name} | {source.kind} | {_where(source)} | {getattr(source, 'license', None) or '?'} |"
        for name, source in sources.items()
    )
    return f"""
## Data

| source | kind | where | licence |
| --- | --- | --- | --- |
{rows}
"""


def _where(source: Source) -> str:
    """Files by their names alone: where they lie on somebody's disk is nobody's business."""
    if isinstance(source, HubSource):
        return f"{source.repo}@{source.revision}"
    files = getattr(source, "files", [])
    return ", ".join(f"`{file.rpartition('/')[2]}`" for file in files) or source.kind


def _evaluation(claims: Sequence[dict[str, Any]]) -> str:
    if not claims:
        return ""
    rows = "\n".join(
        f"| {c['claim']} | {show(c['metric'], c['value'])} | {interval(c['metric'], c)} | "
        f"{'' if c['baseline'] is None else show(c['metric'], c['baseline'])} | "
        f"{interval(c['metric'], d) if (d := c.get('difference')) else ''} | {c['verdict']} |"
        for c in claims
    )
    return f"""
## Evaluation

Intervals are 95%. Losses are nats a token on documents that training never saw.

| claim | value | interval | baseline | difference | verdict |
| --- | --- | --- | --- | --- | --- |
{rows}
"""


def _panels(panels: Sequence[Panel]) -> str:
    if not panels:
        return ""
    rows = "\n".join(f"| {' | '.join(row.cells())} |" for p in panels for row in p.rows)
    return f"""
## What it could before

The same items before and after training; intervals of the difference are 95%.

| metric or task | before | after | difference | items | |
| --- | --- | --- | --- | --- | --- |
{rows}
"""


def _benchmarks(rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""
## Benchmarks

By lm-evaluation-harness; scores in percent, intervals are 95%.

| task | metric | score | interval | items |
| --- | --- | --- | --- | --- |
{lines}
"""
