"""The server's own work with no HTTP around it: workers that each decode and classify one picture after another.

    {"photo": "…/rocket.jpg", "seconds": 3.0}  →  {"ms": [20.1, …], "seconds": 3.01}

What is measured is `serve.model.classifier`, threads of one process sharing one model as in the server. JSON
lines in and out; the first line out says which class the first picture got.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from serve.config.settings import Config
from serve.model.classifier import Classifier, load_classifier
from serve.model.postprocess import DEFAULT_TOP_K
from serve.printable import ArgumentParser


def main() -> int:
    """Answer one line after another until standard input ends."""
    parser = ArgumentParser(prog="python benchmarks/harness/loop_worker.py")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--photo", type=Path, required=True, help="the first picture")
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
    """Milliseconds of each picture that was finished within the time; one untimed picture a worker comes first.

    seconds, as returned: until the last of those was finished, so that no picture is cut in two.
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
