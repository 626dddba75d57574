"""Metrics for Prometheus: counts, times and the engine's state; never what anybody wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from smollm3.infer import Engine
from smollm3.serve.admission import AdmissionQueue

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_GAPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)
# The engine's statistics: what each is called here, and what it is.
_GAUGES = {
    "running": ("engine_requests_running", "Requests in the engine's steps"),
    "waiting": ("engine_requests_waiting", "Requests that wait inside the engine"),
    "blocks": ("kv_cache_blocks", "Blocks of the KV cache"),
    "blocks_free": ("kv_cache_blocks_free", "Blocks of the KV cache without content"),
    "blocks_cached": (
        "kv_cache_blocks_cached",
        "Blocks of the prefix cache that no request uses now",
    ),
}
_COUNTERS = {
    "steps": ("engine_steps", "Forward passes"),
    "prefill_tokens": ("prefill_tokens", "Prompt tokens computed"),
    "decode_tokens": ("decode_tokens", "Tokens sampled"),
    "draft_tokens": ("draft_tokens", "Draft tokens tried by speculative decoding"),
    "accepted_tokens": ("accepted_draft_tokens", "Draft tokens accepted"),
    "cached_tokens": ("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache"),
    "preemptions": ("preemptions", "Requests put back for want of memory"),
}


class Metrics:
    """The metrics of one server."""

    def __init__(self, engine: Engine, admission: AdmissionQueue) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "smollm3_requests", "Answered requests", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "smollm3_request_duration_seconds",
            "From a request to the end of its answer",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first = Histogram(
            "smollm3_time_to_first_token_seconds",
            "From a request to the first token of its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.gap = Histogram(
            "smollm3_inter_token_latency_seconds",
            "From one token of an answer to the next",
            buckets=_GAPS,
            registry=registry,
        )
        self.tokens = Counter(
            "smollm3_tokens", "Tokens of answered requests", ["kind"], registry=registry
        )
        registry.register(_State(engine, admission))

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

    def __init__(self, engine: Engine, admission: AdmissionQueue) -> None:
        self._engine = engine
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        running, waiting = self._admission.running, self._admission.waiting
        yield GaugeMetricFamily("smollm3_answers_running", "Answers in progress", running)
        yield GaugeMetricFamily("smollm3_answers_waiting", "Answers that wait to begin", waiting)
        stats = self._engine.stats()
        for key, (name, told) in _GAUGES.items():
            yield GaugeMetricFamily(f"smollm3_{name}", told, getattr(stats, key))
        for key, (name, told) in _COUNTERS.items():
            yield CounterMetricFamily(f"smollm3_{name}", told, getattr(stats, key))
