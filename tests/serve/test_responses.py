"""Tests the bodies of answers to uploads, and the times of each stage in a response."""

import json
import math

import numpy as np
import pytest

from serve.api.app import create_metrics
from serve.api.pipeline import Pipeline
from serve.api.responses import server_timing, upload_body
from serve.config.settings import Config
from serve.errors import UndecodableImage
from serve.imaging.normalise import FloatArray
from serve.model.classifier import Classifier
from serve.model.labels import Label
from serve.model.postprocess import ScoredLabel
from serve.model.prediction import prediction
from serve.model.stages import Classified
from serve.problems import problem_from
from serve.scheduling.task import Outcome
from tests.exchange import make_exchange, started_lifecycle


def done(queued: float, **seconds: float) -> Outcome[Classified]:
    return Outcome(queued, Classified(np.zeros(2, np.float32), [], seconds))


@pytest.fixture(scope="module")
def pipeline(config: Config, classifier: Classifier) -> Pipeline:
    return Pipeline(config, classifier, started_lifecycle(), create_metrics(classifier))


def stages_of(pipeline: Pipeline, read_seconds: float, outcomes: list[Outcome[Classified]]) -> dict[str, float]:
    exchange = make_exchange({}, [])
    pipeline.record_stages(exchange, read_seconds, outcomes)
    assert exchange.record.stages
    return exchange.record.stages


def test_stages_of_several_images_add_up_and_the_longest_wait_counts(pipeline: Pipeline) -> None:
    outcomes = [
        done(0.25, decode=1.0, preprocess=2.0, infer=4.0),
        done(0.5, decode=8.0, preprocess=16.0, infer=32.0),
        Outcome[Classified](0.125, error=UndecodableImage("broken")),
    ]
    assert stages_of(pipeline, 64.0, outcomes) == {
        "read": 64.0,
        "decode": 9.0,
        "preprocess": 18.0,
        "queue": 0.5,
        "infer": 36.0,
    }


def test_a_tensor_has_no_decoding(pipeline: Pipeline) -> None:
    assert stages_of(pipeline, 1.0, [done(0.0, infer=2.0)]) == {
        "read": 1,
        "decode": 0,
        "preprocess": 0,
        "queue": 0,
        "infer": 2,
    }


def test_server_timing_is_in_milliseconds() -> None:
    assert server_timing({"read": 0.0015, "queue": 2.0}) == "read;dur=1.500, queue;dur=2000.000"


@pytest.mark.parametrize("queued", [(3.0, 1.0), (1.0, 3.0)])
def test_an_image_that_was_refused_waited_too(pipeline: Pipeline, queued: tuple[float, float]) -> None:
    first, second = (Outcome[Classified](seconds, error=UndecodableImage("broken")) for seconds in queued)
    assert stages_of(pipeline, 0.0, [first, second])["queue"] == 3.0


CAT, DOG = Label("n02123045", 'tabby "cat"\\'), Label(None, "chien\tà")
PREDICTED = [ScoredLabel(1, CAT, 0.98765432), ScoredLabel(0, DOG, 0.0000123456789), ScoredLabel(2, DOG, 0.0)]
ENTRIES = [
    {"index": 1, "imagenet_id": "n02123045", "label": 'tabby "cat"\\', "probability": 0.987654},
    {"index": 0, "label": "chien\tà", "probability": 1.23457e-05},
    {"index": 2, "label": "chien\tà", "probability": 0.0},
]
BEST = {"imagenet_id": "n02123045", "label": 'tabby "cat"\\', "probability": 0.987654}


def compact(answer: object) -> bytes:
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def predicted(*scored: ScoredLabel, embedding: FloatArray | None = None) -> Outcome[Classified]:
    return Outcome(0.0, Classified(np.zeros(3, np.float32), list(scored), {}, embedding))


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 3), (1.23457e-05, 2), (1.2346e-05, 1), (1.0, 0)])
def test_a_prediction_is_written_as_json_would_write_it(threshold: float, kept: int) -> None:
    body = upload_body([predicted(*PREDICTED)], None, 'my "net"', threshold)
    assert body == compact({**BEST, "top_k": ENTRIES[:kept], "model": 'my "net"'})


def test_a_class_without_an_id_may_be_the_best() -> None:
    body = upload_body([predicted(PREDICTED[1])], None, "m", 0.0)
    assert body == compact({"label": "chien\tà", "probability": 1.23457e-05, "top_k": ENTRIES[1:2], "model": "m"})


def test_results_of_several_images_are_written_as_json_would_write_them() -> None:
    error = UndecodableImage("broken")
    outcomes = [predicted(*PREDICTED, embedding=np.array([0.1, 2], np.float32)), Outcome[Classified](0.0, error=error)]
    answer = {**BEST, "top_k": ENTRIES, "model": "m"}
    assert upload_body(outcomes, ['a"b.jpg', "é.png"], "m", 0.0) == compact(
        {
            "results": [
                {"filename": 'a"b.jpg', **answer, "embedding": [0.1, 2.0]},
                {"filename": "é.png", **problem_from(error)},
            ]
        }
    )


def test_a_record_has_the_members_of_an_answer() -> None:
    classified = predicted(*PREDICTED).unwrap()
    assert prediction(classified, "m") == {**BEST, "top_k": ENTRIES, "model": "m"}


def test_what_is_no_number_is_not_written() -> None:
    with pytest.raises(ValueError, match="the probability of class 4 is nan"):
        upload_body([predicted(ScoredLabel(4, CAT, math.nan))], None, "m", 0.0)
