"""What Prometheus reads at /metrics."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry

        def counter(name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(name, meaning, labels, namespace="convai", registry=registry)

        def histogram(name: str, meaning: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
            return Histogram(name, meaning, labels, namespace="convai", registry=registry, buckets=buckets)

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(name, meaning, namespace="convai", registry=registry)

        self.requests = counter("requests", "requests answered", ["route", "status"])
        self.seconds = histogram("request_seconds", "from request to the answer's end", SECONDS, ["route"])
        self.first_text = histogram(
            "first_text_seconds", "from request to the reply's first text, of streamed replies", SECONDS
        )
        self.prompt_tokens = counter("prompt_tokens", "tokens read")
        self.reply_tokens = counter("reply_tokens", "tokens generated")
        self.batch_size = histogram("batch_size", "replies that grew by a token together", SIZES)
        self._waiting = gauge("waiting", "requests that wait")
        self._running = gauge("running", "replies that are being generated")

    def watch(self, n_waiting: Callable[[], int], n_running: Callable[[], int]) -> None:
        """Have the numbers of what waits and runs asked for when the metrics are read."""
        self._waiting.set_function(n_waiting)
        self._running.set_function(n_running)

    def text(self) -> bytes:
        return generate_latest(self.registry)
