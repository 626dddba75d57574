"""BFCL's simulated services. This file's text is run inside the sandbox, together with that of the
services' classes: what a model calls them with never reaches this process. Standard library only.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
import types
from decimal import Decimal, localcontext
from typing import Any

PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
STATELESS = "MathAPI"
GUARD = 10  # digits beyond those that are wanted
Call = tuple[str, list[Any], dict[str, Any]]  # name, arguments by place, by name
classes: dict[str, Any] = {}


def load(sources: dict[str, str], files: dict[str, str]) -> None:
    """sources: module -> its text, those that others import first; files: class -> its module."""
    sys.modules["mpmath"] = _mpmath()
    for name, text in sources.items():
        module = types.ModuleType(f"{PACKAGE}.{name}")
        sys.modules[module.__name__] = module
        exec(compile(text, f"<{name}>", "exec"), module.__dict__)
    for name, file in files.items():
        classes[name] = getattr(sys.modules[f"{PACKAGE}.{file}"], name)


class World:
    """Fresh services in their first state. config: class -> its scenario."""

    def __init__(self, names: list[str], config: dict[str, Any], long_context: bool) -> None:
        self.services: dict[str, Any] = {}
        self.methods: dict[str, Any] = {}
        for name in names:
            service = self.services[name] = classes[name]()
            if name != STATELESS:
                scenario = copy.deepcopy(config.get(name, {}))
                service._load_scenario(scenario, long_context=long_context)
            for method, bound in inspect.getmembers(service, predicate=inspect.ismethod):
                if not method.startswith("_"):
                    self.methods[method] = bound

    def call(self, name: str, by_place: list[Any], by_name: dict[str, Any]) -> str:
        """What the model is told of a call."""
        if name not in self.methods:
            return f"Error during execution: name '{name}' is not defined"
        try:
            found = self.methods[name](*by_place, **by_name)
        except Exception as e:
            return f"Error during execution: {e}"
        if isinstance(found, str):
            return found
        if isinstance(found, dict):
            try:
                return json.dumps(found)
            except (TypeError, ValueError):
                pass
        return str(found)

    def state(self) -> dict[str, dict[str, Any]]:
        return {
            name: {key: value for key, value in vars(service).items() if not key.startswith("_")}
            for name, service in self.services.items()
        }


def told(item: dict[str, Any], steps: list[list[Call]]) -> list[str]:
    """What the last step's calls give, after all that were made before."""
    world = World(item["classes"], item["config"], item["long_context"])
    return [[world.call(*call) for call in step] for step in steps][-1]


def fault(item: dict[str, Any], turns: list[list[list[Call]]], right: list[list[Call]]) -> str:
    """Why a model's turns (of steps of calls) are not right, "" where they are: after each turn
    that calls for something the services must be in the state that the right calls leave, and
    all that these were told must have been told."""
    ours, theirs = (
        World(item["classes"], item["config"], item["long_context"]) for _ in ("ours", "theirs")
    )
    heard: list[str] = []
    for number, (steps, calls) in enumerate(zip(turns, right, strict=True), 1):
        heard += [ours.call(*call) for step in steps for call in step]
        wanted = [theirs.call(*call) for call in calls]
        if not calls:
            continue
        if not steps:
            return f"turn {number}: nothing was called"
        mine, truth = ours.state(), theirs.state()
        for name in truth:
            if mine[name] != truth[name]:
                return f"turn {number}: {name} is in another state"
        left = list(heard)
        for answer in wanted:
            if answer not in left:
                return f"turn {number}: not asked for: {answer[:200]}"
            left.remove(answer)
    return ""


def _mpmath() -> types.ModuleType:
    """Of mpmath, which is not in the standard library, the logarithm that MathAPI asks for: to
    as many digits, though mpmath shows a few more."""
    module = types.ModuleType("mpmath")
    module.mp = types.SimpleNamespace(dps=15)  # type: ignore[attr-defined]

    def digits() -> int:
        return max(1, min(int(module.mp.dps), 1000))

    class Number:
        def __init__(self, value: Decimal) -> None:
            self.value = value

        def __truediv__(self, other: Number) -> Number:
            with localcontext() as context:
                context.prec = digits() + GUARD
                return Number(self.value / other.value)

        def __repr__(self) -> str:
            with localcontext() as context:
                context.prec = digits()
                shown = f"{(+self.value).normalize():f}"
            return f"mpf('{shown if '.' in shown else shown + '.0'}')"

    def log(value: float) -> Number:
        with localcontext() as context:
            context.prec = digits() + GUARD
            return Number(Decimal(value).ln())

    module.log = log  # type: ignore[attr-defined]
    return module
