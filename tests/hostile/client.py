"""A client that sends bytes unchanged, and the memory of a process."""

import asyncio
import contextlib
import re
from pathlib import Path

from tests.hostile.requests import NO_ANSWER, Attack


async def send(attack: Attack, host: str, port: int) -> tuple[int, str, bytes]:
    """Send a request; return status (or `NO_ANSWER`), content type and body of the first answer."""
    reader, writer = await asyncio.open_connection(host, port)
    answer = asyncio.ensure_future(read_answer(reader, head_only=attack.data.startswith(b"HEAD")))
    try:
        with contextlib.suppress(ConnectionError):  # the server has already answered and closed
            for position in range(0, len(attack.data), attack.step):
                if answer.done():  # the request was refused
                    break
                writer.write(attack.data[position : position + attack.step])
                await writer.drain()
                if attack.pause:
                    await asyncio.sleep(attack.pause)
            if attack.leave and attack.expected != {NO_ANSWER}:
                writer.write_eof()
        return await answer
    except (asyncio.IncompleteReadError, ConnectionError):
        return NO_ANSWER, "", b""
    finally:
        answer.cancel()
        writer.transport.abort()


async def read_answer(reader: asyncio.StreamReader, head_only: bool) -> tuple[int, str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split(" ", 2)[1])
    if status == 100:
        return await read_answer(reader, head_only)
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head.split("\r\n")[1:])}
    length = 0 if head_only else int(headers.get("content-length", 0))
    return status, headers.get("content-type", ""), await reader.readexactly(length)


def megabytes(pid: int, what: str) -> float:
    """A process's memory in MB (10⁶ bytes) from /proc/PID/status. what: VmRSS (now) or VmHWM (peak)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e6
