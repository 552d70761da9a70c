"""Tests the times of each stage in a response."""

import numpy as np
import pytest

from serve.api.app import create_metrics
from serve.api.pipeline import Pipeline
from serve.api.responses import server_timing
from serve.config.settings import Config
from serve.errors import UndecodableImage
from serve.model.classifier import Classifier
from serve.model.stages import Classified
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
