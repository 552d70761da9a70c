"""Small made-up results in the form of a run's results."""

from typing import Any

from benchmarks.harness.figures import spread


def figures(p50: float, rate: float, p99: float | None = None, count: int = 5) -> Any:
    """The figures of one workload; all rounds are equal."""
    p99 = p50 * 1.2 if p99 is None else p99
    return {
        **{name: spread([value] * count) for name, value in (("p50_ms", p50), ("p90_ms", p50), ("p99_ms", p99))},
        "images_per_s": spread([rate] * count),
        "p99_to_p50": spread([p99 / p50] * count),
        "load_cpu_share": spread([0.01] * count),
        "others_cpu_share": spread([0.0] * count),
        "images": 100,
        "errors": 0,
        "wrong": 0,
    }


def server(one: float, rate: float, start: float = 1.0, **more: Any) -> dict[str, Any]:
    memory = {"rss": 200.0, "pss": 150.0, "processes": 1}
    return {
        "settings": "",
        "start_s": spread([start]),
        "idle_mb": memory,
        "loaded_mb": memory,
        "clients": {"1": figures(one, 1000 / one), "16": figures(16000 / rate, rate), **more},
    }


def result(servers: dict[str, Any], vnni: bool = True, cpu: str = "Test CPU") -> dict[str, Any]:
    return {
        "schema": 2,
        "kind": "latency",
        "date": "2026-01-02T03:04:05+00:00",
        "revision": "abc1234",
        "tree": "clean",
        "seconds": 1.0,
        "machine": {"cpu": cpu, "usable_cpus": 2, "vnni": vnni, "features": ["amx_int8"] * vnni},
        "photos": {"photo": {"bytes": 112525, "width": 640, "height": 427}},
        "engines": {"onnxruntime int8": {"1": figures(20, 50), "2": figures(12, 80)}},
        "servers": servers,
        "left_out": [],
    }
