"""The fuzz targets: functions of bytes. Any exception that they raise is a finding; they catch `RequestError`.

python -m fuzz picture -max_total_time=1800 FOLDER
"""

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np

from serve.api.upload import UploadLimits
from serve.api.v2.messages import Signature, parse_request, write_response
from serve.errors import DecodeTimeout, RequestError, TooComplex
from serve.imaging.decode import decode_upright, open_image
from serve.imaging.decoders import InProcessDecoder
from serve.imaging.fork_server import ForkServer
from serve.imaging.formats import ACCEPTED_FORMATS
from serve.imaging.limits import ImageLimits, require_format
from serve.imaging.messages import Rules
from serve.imaging.normalise import normalise
from serve.imaging.pool import REQUIRED, DecoderPool, PoolOptions
from serve.imaging.preprocess import Preprocessing
from serve.imaging.resize import crop_bytes
from serve.model.labels import Label
from serve.problems import problem_from
from tests.exchange import upload_of

_SPEC: Final = Preprocessing(32, "bilinear", 28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# A fifth of a megapixel, so that there are many inputs a second.
_LIMITS: Final = ImageLimits(200_000, 100, 1.0)
_RULES: Final = Rules(_SPEC, _LIMITS)
_SIGNATURE: Final = Signature("tiny", 2, (Label("n1", "one"), Label("n2", "two")), 4, 3)
_UPLOAD_LIMITS: Final = UploadLimits(1 << 20, 4)


def picture(data: bytes) -> None:
    """Fuzz one file: format, header, decoding, preprocessing to FP32 `[1, 3, 28, 28]`."""
    try:
        upright = decode_upright(open_image(data, _SPEC, _LIMITS), reduce_for=_SPEC)
        batch = normalise(crop_bytes(upright.rgb, upright.size, _SPEC, exact=False, jpeg=False), _SPEC)
    except RequestError as error:
        problem_from(error)
        return
    if batch.shape != (1, 3, 28, 28) or not (abs(batch) <= 1.0).all():
        raise AssertionError(f"an image became {batch.shape} with values up to {abs(batch).max()}")


def decoder(data: bytes) -> None:
    """Fuzz one file in a decoder process, whose answer must be that of decoding in this process."""
    answers: list[bytes | str] = []
    for decoders in (_pool(), InProcessDecoder(_RULES)):
        try:
            answers.append(decoders.decode(data, require_format(data)).pixels)
        except (DecodeTimeout, TooComplex):  # these limits hold in a decoder process only
            return
        except RequestError as error:
            answers.append(str(error))
    if answers[0] != answers[1]:
        raise AssertionError("a decoder process has another answer than this one")


@cache
def _pool() -> DecoderPool:
    options = PoolOptions(_RULES, max_bytes=1 << 24, reuse=ACCEPTED_FORMATS, sandbox=REQUIRED)
    return DecoderPool(ForkServer(), options)


def multipart(data: bytes) -> None:
    """Fuzz one body; the first line is its Content-Type, the second the size of its chunks."""
    content_type, _, rest = data.partition(b"\n")
    size, _, body = rest.partition(b"\n")
    step = max(1, int.from_bytes(size[:2], "big"))

    chunks = (body[position : position + step] for position in range(0, len(body), step))
    headers = {"content-type": content_type.decode("latin-1"), "transfer-encoding": "chunked"}
    try:
        files = upload_of(headers, chunks, _UPLOAD_LIMITS)
    except RequestError as error:
        problem_from(error)
        return
    kept = sum(len(file.data) for file in files)
    if not 1 <= len(files) <= _UPLOAD_LIMITS.max_files or kept > len(body):
        raise AssertionError(f"{len(files)} files of {kept} bytes from a body of {len(body)}")


def inference(data: bytes) -> None:
    """Fuzz one inference request; the first line is the length of its JSON, or empty if there is only JSON."""
    length, _, body = data.partition(b"\n")
    try:
        asked = parse_request(length.decode("latin-1") or None, body, _SIGNATURE)
    except RequestError as error:
        problem_from(error)
        return
    rows = len(asked.rows) + len(asked.images)
    if not 1 <= rows <= _SIGNATURE.max_rows or sum(map(len, asked.images)) > len(body):
        raise AssertionError(f"{rows} rows from a body of {len(body)} bytes")
    values = {name: np.zeros((rows, length), np.float32) for name, length in _SIGNATURE.outputs.items()}
    write_response(asked, values, _SIGNATURE)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "picture": picture,
    "decoder": decoder,
    "multipart": multipart,
    "inference": inference,
}
