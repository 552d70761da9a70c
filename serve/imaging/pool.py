"""Decodes images in confined processes: one image at a time each, bounded in time and memory from outside."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from serve import errors
from serve.errors import DecoderDied, NotReady, QueueFull, RequestError, StartError
from serve.imaging.crops import Crop, OnSlow
from serve.imaging.decoder_process import DecoderProcess, Gone, Overrun, Postponed, Starved, cause_of_death
from serve.imaging.fork_server import ForkServer, Terms
from serve.imaging.limits import check_early, check_limits, damaged
from serve.imaging.messages import Code, Reply, Request, Rules
from serve.imaging.sandbox import ISOLATED, SEALED
from serve.imaging.varieties import VARIETIES, unsupported

AUTO, REQUIRED = "auto", "required"
# Reasons for which a decoder ended before its time.
DEATHS: Final = ("overrun", "forbidden_call", "crash", "killed", "protocol")
# Images of up to this many pixels are decoded side by side, within this much memory each; larger ones one at a time.
_SMALL_PIXELS: Final = 4_000_000
_SMALL_MEMORY: Final = 144 * 2**20
# By default a decoder may have as many bytes a pixel of the largest image: WebP needs 16 (docs/serving.md).
_BYTES_A_PIXEL: Final = 17
_PAGE: Final = 2**16
# Tries to start a decoder for an image.
_TRIES: Final = 5
# After so many deaths with no image decoded in between, further decoders are started ever more slowly.
_DEATHS_IN_A_ROW: Final = 16
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0


@dataclass(frozen=True)
class PoolOptions:
    """How decoders are kept.

    Attributes:
        rules: how images are decoded.
        max_bytes: the largest image file.
        memory: bytes of address space that a decoder may add; 0 for what the largest image needs.
        streams: decoders that are kept for reuse.
        reuse: formats whose decoder takes a further image; the others get a fresh decoder for each.
        sandbox: `AUTO` or `REQUIRED`.
    """

    rules: Rules
    max_bytes: int
    memory: int = 0
    streams: int = 1
    reuse: Collection[str] = ("JPEG", "PNG")
    sandbox: str = AUTO


class DecoderPool:
    """Decoder processes, taken by the threads that need an image decoded.

    Args:
        fork_server: forks the decoders; the caller closes it.
        options: how decoders are kept.

    Raises:
        StartError: no decoder can be started, or none sealed although that is required.
    """

    def __init__(self, fork_server: ForkServer, options: PoolOptions) -> None:
        self._fork_server = fork_server
        self._options = options
        crop_bytes = options.rules.spec.crop**2 * 3
        most = options.memory or max(options.rules.limits.max_pixels * _BYTES_A_PIXEL, _SMALL_MEMORY)
        self._terms = Terms(-(-crop_bytes // _PAGE) * _PAGE, min(_SMALL_MEMORY, most), most, True)
        self._lock = threading.Lock()
        self._large = threading.Lock()
        self._used: list[DecoderProcess] = []
        self._fresh: deque[DecoderProcess] = deque()
        self._deaths_in_a_row = 0
        self._closed = False
        self.on_death: Callable[[str], None] = lambda _: None
        self.on_slow: OnSlow = lambda _: False
        self.state = self._start()

    def decode(self, data: bytes, format_name: str) -> Crop:
        """Decodes an image.

        Raises:
            RequestError: the image exceeds a limit, is damaged or of an unsupported variety, or ended its decoder.
            QueueFull: it takes long, and so do too many others.
        """
        options = self._options
        if len(data) > options.max_bytes:
            raise errors.UploadTooLarge(f"The file has {len(data)} bytes; the limit is {options.max_bytes} bytes.")
        check_early(data, format_name, options.rules.spec, options.rules.limits)
        request = Request(format_name, len(data), options.rules, _SMALL_PIXELS)
        try:
            return self._decode(request, data, self.on_slow)
        except Postponed:
            return self._decode(request, data, None)

    def _decode(self, request: Request, data: bytes, on_slow: OnSlow | None) -> Crop:
        """Decodes an image that is within the limits that need no decoder; on_slow: as for `DecoderProcess.finish`."""
        format_name = request.format_name
        started = time.perf_counter()
        decoder = self._begin(request, data)
        if on_slow is None:
            decoder.lower_priority()
        try:
            reply, pixels = decoder.finish(request, self._large, on_slow)
            self._check(decoder, request, reply)
        except QueueFull:
            decoder.retire()
            raise
        except RequestError:
            self._give_back(decoder, format_name)
            raise
        except Starved:
            decoder.retire()
            raise QueueFull(
                "The server is too busy for an image that takes long to decode; try again in a moment."
            ) from None
        except Overrun:
            self._end_and_count(decoder, "overrun")
            limit = request.rules.limits.decode_seconds
            raise errors.DecodeTimeout(f"The image takes too long to decode; the limit is {limit:g} s.") from None
        except Gone:
            self._end_and_count(decoder)
            raise DecoderDied(f"The {format_name} image ended the process that was decoding it.") from None
        except BaseException:
            decoder.retire()
            raise
        self._give_back(decoder, format_name)
        seconds = time.perf_counter() - started
        resizing = min(seconds, reply.resize_ns / 1e9)
        return Crop(pixels, seconds - resizing, resizing)

    def close(self) -> None:
        """Ends the decoders that are idle; those at work end with their image."""
        with self._lock:
            self._closed = True
            idle = [*self._used, *self._fresh]
            self._used.clear()
            self._fresh.clear()
        for decoder in idle:
            decoder.retire()

    def _start(self) -> str:
        """Forks the first decoders and returns their state."""
        required = self._options.sandbox == REQUIRED
        # Twice sealed, because a death may have another reason than the seal.
        for seal in (True, True) if required else (True, True, False):
            self._terms = self._terms._replace(seal=seal)
            try:
                first = self._fork()
            except OSError:
                continue
            try:
                first.wait_ready()
            except (Gone, Overrun):
                first.retire()
                continue
            if required and not first.sealed:
                first.retire()
                raise StartError(
                    "sandbox=required, but this system does not allow a decoder to be sealed (seccomp); sandbox=auto "
                    "starts with decoders that are isolated only"
                )
            self._fresh.extend([first, *(self._fork() for _ in range(self._options.streams - 1))])
            return SEALED if first.sealed else ISOLATED
        raise StartError("no decoder process can be started")

    def _begin(self, request: Request, data: bytes) -> DecoderProcess:
        """Finds a decoder that is alive and hands it the image."""
        # All that are idle may have died, as with the fork server.
        for _ in range(2 * self._options.streams + _TRIES):
            self._pause()
            try:
                decoder = self._take(request.format_name in self._options.reuse)
            except OSError:
                break
            try:
                decoder.begin(request, data)
            except (Gone, Overrun, OSError):  # OSError: there is no memory for the image
                self._end_and_count(decoder)
                continue
            if decoder.sealed == (self.state == SEALED):
                return decoder
            self._end_and_count(decoder, "protocol")
        raise NotReady("No decoder process can be started; try again in a moment.")

    def _take(self, reusable: bool) -> DecoderProcess:
        with self._lock:
            if reusable and self._used:
                return self._used.pop()
            taken = self._fresh.popleft() if self._fresh else self._fork()
            if not self._fresh:
                self._fresh.append(self._fork())  # ahead of need
            return taken

    def _give_back(self, decoder: DecoderProcess, format_name: str) -> None:
        self._deaths_in_a_row = 0
        reusable = format_name in self._options.reuse and not decoder.lowered  # a priority cannot be raised again
        with self._lock:
            if reusable and len(self._used) < self._options.streams and not self._closed:
                self._used.append(decoder)
                return
        decoder.retire()

    def _fork(self) -> DecoderProcess:
        return DecoderProcess(self._fork_server, self._terms, self._options.max_bytes)

    def _end_and_count(self, decoder: DecoderProcess, reason: str = "") -> None:
        """Ends a decoder that has failed, unless it has ended, and counts its death."""
        status = decoder.end()
        self._deaths_in_a_row += 1
        self.on_death(reason or ("protocol" if decoder.broke_protocol else cause_of_death(status)))

    def _pause(self) -> None:
        beyond = self._deaths_in_a_row - _DEATHS_IN_A_ROW
        if beyond > 0:
            time.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(beyond, 10)))

    def _check(self, decoder: DecoderProcess, request: Request, reply: Reply) -> None:
        """Raises the error that a decoder's reply stands for.

        Raises:
            RequestError: the image is refused.
            Gone: the reply contradicts itself.
        """
        rules, size = request.rules, (reply.width, reply.height)
        if reply.code in (Code.DONE, Code.OVER_LIMIT) and min(*size, reply.frames) < 1:
            raise decoder.protocol_error()
        match reply.code:
            case Code.DONE:
                check_limits(size, reply.frames, rules.spec, rules.limits)
            case Code.OVER_LIMIT:
                check_limits(size, reply.frames, rules.spec, rules.limits)
                raise decoder.protocol_error()
            case Code.NO_MEMORY:
                raise errors.TooComplex(
                    f"Decoding the image takes more memory than the limit, {self._terms.all_memory // 2**20} MB."
                )
            case Code.UNSUPPORTED:
                raise unsupported(VARIETIES[reply.variety])
            case _:
                raise damaged(request.format_name)
