"""From the words of the command line to an evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.eval.console import eval_on_console
from smollm3.eval.harness import Wanted
from smollm3.eval.ruler import Files
from smollm3.eval.run import evaluated, plan
from smollm3.eval.target import EngineTarget, Settings, Target

URL = re.compile(r"https?://")


def launch(
    model: str,
    *,
    tasks: str | None,
    suite: str | None,
    data: Path | None,
    out: Path | None,
    limit: int | None,
    few_shot: int | None,
    lengths: str | None,
    files: Files,
    judge: str | None,
    asked: dict[str, Any],
    engine_options: dict[str, Any],
) -> None:
    """Evaluate; options as of `smollm3 eval`. asked: those of `Settings` that were given."""
    if (tasks is None) == (suite is None):
        raise UserError("give either --tasks or --suite")
    if data is not None and not data.is_dir():
        raise UserError(f"{data}: no such folder of data sets")
    settings, names, skip = plan(suite, names_of(tasks) if tasks is not None else [], asked)
    rates: Target | None = None
    if judge is not None:
        from smollm3.eval.remote import UrlTarget

        if not URL.match(judge):
            raise UserError(f"--judge: the URL of an OpenAI-compatible server, not {judge!r}")
        rates = UrlTarget(judge, Settings(chat=True), says_mode=False)
    wanted = Wanted(
        names, few_shot, limit, data, lengths_of(lengths), files, skip=skip, judge=rates
    )
    folder = out or Path("evals") / f"{_name(model)}{f'-{suite}' if suite else ''}"
    if URL.match(model):
        from smollm3.eval.remote import UrlTarget

        if engine_options:
            raise UserError(f"--{next(iter(engine_options))}: not for a server at a URL")
        eval_on_console(UrlTarget(model, settings), wanted, settings, folder, suite)
        return
    if engine_options.get("engine") == "vllm":
        from smollm3.eval.vllm import serving

        options = {key: value for key, value in engine_options.items() if key != "engine"}
        with serving(model, settings, options) as target:
            eval_on_console(target, wanted, settings, folder, suite)
        return
    with evaluated(model, **engine_options) as engine:
        eval_on_console(EngineTarget(engine, model, settings), wanted, settings, folder, suite)


def names_of(tasks: str) -> list[str]:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks: names no task")
    return names


def lengths_of(lengths: str | None) -> list[int]:
    try:
        found = [
            int(part.replace("k", "")) * (1024 if "k" in part else 1)
            for part in (lengths or "4096").split(",")
        ]
    except ValueError:
        raise UserError(
            f"--lengths: numbers of tokens by commas, as 4096,32k; not {lengths!r}"
        ) from None
    if min(found) < 1:
        raise UserError("--lengths: must be at least 1")
    return found


def _name(model: str) -> str:
    """Of the folder for a model's results."""
    return re.sub(r"[^\w.-]+", "-", URL.sub("", model).strip("/.")) or "model"
