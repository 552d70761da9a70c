from collections.abc import Callable, Iterator

import numpy as np
import pytest

from serve.imaging.fork_server import ForkServer
from serve.imaging.limits import ImageLimits, require_format
from serve.imaging.messages import Rules
from serve.imaging.pool import REQUIRED, DecoderPool, PoolOptions
from serve.imaging.preprocess import Preprocessing
from tests.serve.conftest import cat, classifier, client, client_for, coffee, config, unignored_signals

__all__ = ["cat", "classifier", "client", "client_for", "coffee", "config", "unignored_signals"]

SIDE = 32
RULES = Rules(Preprocessing(SIDE, "bilinear", SIDE, (0, 0, 0), (1, 1, 1)), ImageLimits(10**7, 100, 10.0), exact=True)

Sealed = Callable[[bytes], np.ndarray]


@pytest.fixture(scope="session")
def sealed() -> Iterator[Sealed]:
    """Decodes an image in a sealed process, and returns the crop of `SIDE` × `SIDE` pixels."""
    fork_server = ForkServer()
    pool = DecoderPool(fork_server, PoolOptions(RULES, 20 * 2**20, sandbox=REQUIRED))

    def decode(data: bytes) -> np.ndarray:
        crop = pool.decode(data, require_format(data))
        return np.frombuffer(crop.pixels, np.uint8).reshape(SIDE, SIDE, 3)

    yield decode
    pool.close()
    fork_server.close()
