"""Measures the server's own work without HTTP: threads that each decode and classify one image after another.

    {"photo": "…/rocket.jpg", "seconds": 3.0}  →  {"ms": [20.1, …], "seconds": 3.01}

The threads share one `serve.model.classifier`, as in the server. JSON lines in and out; the first output line names the
first image's class.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from serve.config.settings import Config
from serve.model.classifier import Classifier, load_classifier
from serve.model.postprocess import DEFAULT_TOP_K
from serve.printable import ArgumentParser


def main() -> int:
    """Answer one line after another until standard input ends."""
    parser = ArgumentParser(prog="python -m benchmarks.harness.loop_worker")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--photo", type=Path, required=True, help="the first image")
    parser.add_argument("--variant", default="auto")
    options = parser.parse_args()
    classifier = load_classifier(Config(model_variant=options.variant))
    first = classifier.classify(options.photo.read_bytes(), 1).scored[0]
    print(json.dumps({"imagenet_id": first.label.imagenet_id}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        data = Path(question["photo"]).read_bytes()
        print(json.dumps(measure(classifier, data, options.workers, question["seconds"])), flush=True)
    return 0


def measure(classifier: Classifier, data: bytes, workers: int, seconds: float) -> dict[str, Any]:
    """Classify for so many seconds, after one untimed image in each worker.

    Returns:
        ms: Of each image that was finished in time.
        seconds: Until the last of those was finished, so that the rate counts whole images only.
    """
    times: list[float] = []
    ends: list[float] = []
    started = threading.Barrier(workers + 1)
    stop = threading.Event()

    def work() -> None:
        classifier.classify(data, DEFAULT_TOP_K)
        started.wait()
        while True:
            began = time.perf_counter()
            classifier.classify(data, DEFAULT_TOP_K)
            if stop.is_set():
                return
            ends.append(time.perf_counter())
            times.append((ends[-1] - began) * 1000)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    started.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return {"ms": times, "seconds": max(ends, default=time.perf_counter()) - began}


if __name__ == "__main__":
    sys.exit(main())
