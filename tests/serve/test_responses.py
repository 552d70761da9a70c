"""Tests the times of each stage in a response."""

import numpy as np
import pytest

from serve.api.responses import server_timing, stage_seconds
from serve.errors import UndecodableImage
from serve.model.classifier import Classified
from serve.scheduling.task import Outcome


def done(queued: float, **seconds: float) -> Outcome[Classified]:
    return Outcome(queued, Classified(np.zeros(2, np.float32), [], seconds))


def test_stages_of_several_images_add_up_and_the_longest_wait_counts() -> None:
    outcomes = [
        done(0.25, decode=1.0, preprocess=2.0, infer=4.0),
        done(0.5, decode=8.0, preprocess=16.0, infer=32.0),
        Outcome[Classified](0.125, error=UndecodableImage("broken")),
    ]
    assert stage_seconds(64.0, outcomes) == {
        "read": 64.0,
        "decode": 9.0,
        "preprocess": 18.0,
        "queue": 0.5,
        "infer": 36.0,
    }


def test_a_tensor_has_no_decoding() -> None:
    assert stage_seconds(1.0, [done(0.0, infer=2.0)]) == {
        "read": 1,
        "decode": 0,
        "preprocess": 0,
        "queue": 0,
        "infer": 2,
    }


def test_server_timing_is_in_milliseconds() -> None:
    assert server_timing({"read": 0.0015, "queue": 2.0}) == "read;dur=1.500, queue;dur=2000.000"


@pytest.mark.parametrize("queued", [(3.0, 1.0), (1.0, 3.0)])
def test_an_image_that_was_refused_waited_too(queued: tuple[float, float]) -> None:
    first, second = (Outcome[Classified](seconds, error=UndecodableImage("broken")) for seconds in queued)
    assert stage_seconds(0.0, [first, second])["queue"] == 3.0
