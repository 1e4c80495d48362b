"""What Prometheus reads at /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = {"namespace": "convai", "registry": self.registry}
        self.requests = Counter("requests", "requests answered", ["route", "status"], **own)
        self.seconds = Histogram("request_seconds", "from request to answer", ["route"], buckets=SECONDS, **own)
        self.first_text = Histogram(
            "first_text_seconds", "from request to the reply's first text, of streamed replies", buckets=SECONDS, **own
        )
        self.prompt_tokens = Counter("prompt_tokens", "tokens read", **own)
        self.reply_tokens = Counter("reply_tokens", "tokens generated", **own)
        self.batch_size = Histogram("batch_size", "replies that grew by a token together", buckets=SIZES, **own)
        self._waiting = Gauge("waiting", "requests that wait", **own)
        self._running = Gauge("running", "replies that are being generated", **own)

    def watch(self, n_waiting: Callable[[], int], n_running: Callable[[], int]) -> None:
        """Have the numbers of what waits and runs asked for when the metrics are read."""
        self._waiting.set_function(n_waiting)
        self._running.set_function(n_running)

    def text(self) -> bytes:
        return generate_latest(self.registry)
