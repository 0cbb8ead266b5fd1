"""Counters of a server in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Meters:
    """What one server has done, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "luthier_requests", "Requests answered.", ("model", "path", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "luthier_request_seconds",
            "Time from a request to the end of its answer.",
            ("model", "path"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "luthier_first_token_seconds",
            "Time from a streamed request to its first token.",
            ("model",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "luthier_waiting", "Requests that wait for a slot.", ("model",), registry=self._registry
        )
        self._tokens = Gauge(
            "luthier_tokens", "Tokens since the model was loaded.", ("model", "kind"), registry=self._registry
        )

    def request(self, model: str, path: str, status: int, seconds: float) -> None:
        """One request has ended."""
        self._requests.labels(model, path, str(status)).inc()
        self._seconds.labels(model, path).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """A streamed answer has begun."""
        self._first.labels(model).observe(seconds)

    def waiting(self, model: str, count: int) -> None:
        """So many requests wait now."""
        self._waiting.labels(model).set(count)

    def text(self, tokens: Mapping[str, Mapping[str, float]]) -> str:
        """All of it. tokens: model -> kind -> count."""
        for model, kinds in tokens.items():
            for kind, count in kinds.items():
                self._tokens.labels(model, kind).set(count)
        return generate_latest(self._registry).decode()
