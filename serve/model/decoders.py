"""Makes the decoders that the settings ask for."""

from serve.config.settings import Config
from serve.errors import StartError
from serve.imaging.decoders import OFF, Decoders, InProcessDecoder
from serve.imaging.fork_server import ForkServer
from serve.imaging.formats import ACCEPTED_FORMATS
from serve.imaging.limits import ImageLimits
from serve.imaging.messages import Rules
from serve.imaging.pool import DecoderPool, PoolOptions
from serve.imaging.preprocess import Preprocessing


def start_fork_server(config: Config) -> ForkServer | None:
    """Starts the process that forks decoders, unless there are to be none; raises `StartError`."""
    try:
        return None if config.sandbox == OFF else ForkServer()
    except OSError as error:
        raise StartError(f"the process that starts decoders cannot be started: {error.strerror}") from error


def make_decoders(
    config: Config, preprocessing: Preprocessing, fork_server: ForkServer | None, jpeg: bool = False
) -> Decoders:
    """Returns what decodes images as `config` says; raises `StartError`.

    Args:
        fork_server: from `start_fork_server`.
        jpeg: as in `Rules`.
    """
    limits = ImageLimits(config.max_pixels, config.max_frames, config.max_decode_ms / 1000)
    rules = Rules(preprocessing, limits, config.exif_orientation, config.decode == "exact", jpeg)
    if fork_server is None or config.sandbox == OFF:
        return InProcessDecoder(rules)
    options = PoolOptions(
        rules,
        config.max_request_bytes,
        config.decoder_memory_mb * 2**20,
        config.thread_plan.streams,
        [name for name in ACCEPTED_FORMATS if name.lower() in config.decoder_reuse],
        config.sandbox,
    )
    return DecoderPool(fork_server, options)
