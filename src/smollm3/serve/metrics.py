"""Figures for Prometheus: counts, times and the engine's state; never what anybody wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from smollm3.infer import Engine
from smollm3.serve.gate import Gate

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_GAPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)
_ENGINE = {
    "running": "Answers in the engine's steps",
    "waiting": "Answers that wait inside the engine",
    "blocks": "Blocks of the cache of keys and values",
    "blocks_free": "Of these without content",
    "blocks_cached": "Of these prefixes that nobody uses now",
    "steps": "Forward passes since the start",
    "prefilled": "Prompt tokens computed since the start",
    "decoded": "Tokens sampled since the start",
    "drafted": "Guesses tried since the start",
    "accepted": "Of these right",
    "reused": "Prompt tokens found computed since the start",
    "preempted": "Answers put back for want of memory since the start",
}


class Metrics:
    """Of one server."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "smollm3_requests", "Answered requests", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "smollm3_request_seconds", "To the end", ["path"], buckets=_SECONDS, registry=registry
        )
        self.first = Histogram(
            "smollm3_first_token_seconds",
            "From the request to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.gap = Histogram(
            "smollm3_token_seconds",
            "From one token of an answer to the next",
            buckets=_GAPS,
            registry=registry,
        )
        self.tokens = Counter("smollm3_tokens", "Tokens", ["kind"], registry=registry)
        registry.register(_State(engine, gate))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Watch:
    """The times of one answer's tokens."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = time.perf_counter()
        self._begun = False

    def token(self) -> None:
        now = time.perf_counter()
        (self._metrics.gap if self._begun else self._metrics.first).observe(now - self._last)
        self._begun, self._last = True, now


class _State(Collector):
    """What is so now."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self._engine = engine
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("smollm3_answers_running", "Admitted", self._gate.running)
        yield GaugeMetricFamily("smollm3_answers_queued", "Waiting", self._gate.waiting)
        stats = self._engine.stats()
        for name, told in _ENGINE.items():
            yield GaugeMetricFamily(f"smollm3_engine_{name}", told, getattr(stats, name))
