"""Thin sinks for the programs in which people watch a run: the files of the run stay the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from smollm3.errors import UserError

TrackerName = Literal["tensorboard", "trackio", "wandb", "mlflow"]
Log = Callable[[str, int, Mapping[str, float]], None]  # stage, step, values

PROJECT = "smollm3"


@dataclass
class _Sink:
    log: Log
    close: Callable[[], None]


class Trackers:
    """Sends values to the named programs. One that fails is left out from then on, with a warning:
    a run does not end because somebody's server does."""

    def __init__(
        self,
        names: Sequence[TrackerName],
        run: str,
        out: Path,
        config: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        """run: its name there. out: the run's folder. config: what to show as its settings.
        UserError for one that is not installed."""
        self._warn = warn
        self._sinks: dict[str, _Sink] = {}
        for name in names:
            if find_spec(name) is None:
                raise UserError(f"track: {name} is not installed; pip install {name}")
        for name in names:
            self._guarded(name, partial(self._open, name, run, out, dict(config)))

    def log(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Those of `values` that are finite numbers."""
        numbers = {
            key: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and key != "step" and math.isfinite(value)
        }
        for name, sink in list(self._sinks.items()):
            self._guarded(name, partial(sink.log, stage, step, numbers))

    def close(self) -> None:
        for name, sink in list(self._sinks.items()):
            self._guarded(name, sink.close)
        self._sinks = {}

    def _open(self, name: TrackerName, run: str, out: Path, config: dict[str, Any]) -> None:
        self._sinks[name] = _OPEN[name](run, out, config)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as e:  # whatever these programs raise
            self._sinks.pop(name, None)
            self._warn(f"track: {name} failed ({type(e).__name__}: {e}); going on without it")


def _named(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{key}": value for key, value in values.items()}


def _tensorboard(run: str, out: Path, config: dict[str, Any]) -> _Sink:
    writer = import_module("torch.utils.tensorboard").SummaryWriter(str(out / "tensorboard"))

    def log(stage: str, step: int, values: Mapping[str, float]) -> None:
        for key, value in _named(stage, values).items():
            writer.add_scalar(key, value, step)

    return _Sink(log, writer.close)


def _wandb(run: str, out: Path, config: dict[str, Any]) -> _Sink:
    ours = import_module("wandb").init(project=PROJECT, name=run, dir=str(out), config=config)
    known: set[str] = set()

    def log(stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in known:  # each stage counts its own steps
            known.add(stage)
            ours.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        ours.log({**_named(stage, values), f"{stage}/step": step})

    return _Sink(log, ours.finish)


def _trackio(run: str, out: Path, config: dict[str, Any]) -> _Sink:
    ours = import_module("trackio").init(project=PROJECT, name=run, config=config)

    def log(stage: str, step: int, values: Mapping[str, float]) -> None:
        ours.log({**_named(stage, values), f"{stage}/step": step})

    return _Sink(log, ours.finish)


def _mlflow(run: str, out: Path, config: dict[str, Any]) -> _Sink:
    mlflow = import_module("mlflow")
    mlflow.set_experiment(PROJECT)
    mlflow.start_run(run_name=run)
    mlflow.log_dict(config, "recipe.json")

    def log(stage: str, step: int, values: Mapping[str, float]) -> None:
        mlflow.log_metrics(_named(stage, values), step=step)

    return _Sink(log, mlflow.end_run)


_OPEN: dict[str, Callable[[str, Path, dict[str, Any]], _Sink]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
