"""What is stored for the tests without torch is still what torchvision and the generators make."""

import json

import numpy as np

from tests import tiny_model
from tests.references import ARRAYS, DIGESTS, pictures, torchvision_references


def test_the_stored_references_are_torchvisions() -> None:
    arrays, digests = torchvision_references()
    stored = np.load(ARRAYS)
    assert set(stored) == set(arrays) == {path.name for path in pictures()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name], array)
    assert json.loads(DIGESTS.read_text()) == digests


def test_the_tiny_model_is_what_its_recipe_makes() -> None:
    assert tiny_model.PATH.read_bytes() == tiny_model.tiny_model()
