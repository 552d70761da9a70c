"""What a decoder that an attacker has taken over might try. Each function is called inside a confined process.

System calls are made by number, as injected machine code would make them, not by Python's own functions alone.
"""

import ctypes
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from serve.imaging.messages import MEMORY, REPLIES, REQUESTS, Code, Reply

# x86-64 and arm64.
_NUMBERS: Final = {
    "open": (2, None),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "socket": (41, 198),
    "connect": (42, 203),
    "execve": (59, 221),
    "fork": (57, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "kill": (62, 129),
    "rt_sigqueueinfo": (129, 138),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "prctl": (157, 167),
    "setrlimit": (160, 164),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "dup": (32, 23),
    "pidfd_open": (434, 434),
}
_COLUMN: Final = ("x86_64", "aarch64").index(os.uname().machine) if sys.platform == "linux" else 0
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MAP: Final = _LIBC.mmap
_MAP.restype, _MAP.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_PROTECT: Final = _LIBC.mprotect
_PROTECT.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_HEAP_START: Final = next(
    (int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text().splitlines() if "[heap]" in line), 0
)
_EVERYTHING: Final = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
# From linux/sched.h: what a thread is started with, and others.
_THREAD: Final = 0x003D_0F00
_CLONE_VM, _CLONE_VFORK, _CLONE_THREAD, _CLONE_NEWNET = 0x100, 0x4000, 0x1_0000, 0x4000_0000


def system_call(name: str, *arguments: object) -> Callable[[], None]:
    def call() -> None:
        number = _NUMBERS[name][_COLUMN]
        assert number is not None
        _LIBC.syscall(number, *arguments)

    return call


def _open_a_file() -> None:
    Path("/etc/passwd").read_bytes()


def _connect_out() -> None:
    socket.create_connection(("127.0.0.1", 1))


def _run_a_program() -> None:
    subprocess.run(["/bin/true"], check=False)


def _map_code() -> None:
    _MAP(None, 4096, _EVERYTHING, _PRIVATE, -1, 0)


def _make_memory_executable() -> None:
    address = _MAP(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, _PRIVATE, -1, 0)
    _PROTECT(address, 4096, mmap.PROT_READ | mmap.PROT_EXEC)


# Each ends the process by SIGSYS.
FATAL: Final[dict[str, Callable[[], None]]] = {
    **{
        name: system_call(name, *arguments)
        for name, arguments in {
            "open": (b"/etc/passwd", 0),
            "openat": (-100, b"/etc/passwd", 0),
            "newfstatat": (-100, b"/etc/passwd", 0, 0),
            "socket": (1, 1, 0),
            "connect": (3, 0, 0),
            "execve": (b"/bin/true", 0, 0),
            "fork": (),
            "clone": (0, 0),
            "kill": (os.getpid(), signal.SIGKILL),
            "rt_sigqueueinfo": (os.getpid(), signal.SIGKILL, 0),
            "ptrace": (16, os.getpid(), 0, 0),
            "process_vm_readv": (os.getpid(), 0, 0, 0, 0, 0),
            "prctl": (4, 1, 0, 0, 0),
            "setrlimit": (9, 0),
            "io_uring_setup": (1, 0),
            "memfd_create": (b"mine", 0),
            "dup": (3,),
            "pidfd_open": (os.getpid(), 0),
        }.items()
        if _NUMBERS[name][_COLUMN] is not None
    },
    "open by Python": _open_a_file,
    "connection by Python": _connect_out,
    "program by Python": _run_a_program,
    "fork by Python": os.fork,  # type: ignore[dict-item]  # its result is of no interest
    "mmap of code": _map_code,
    "mprotect of code": _make_memory_executable,
    "clone of a child": system_call("clone", signal.SIGCHLD, 0),
    "clone like vfork": system_call("clone", _CLONE_VM | _CLONE_VFORK | signal.SIGCHLD, 0),
    "clone of all but a thread": system_call("clone", _THREAD & ~_CLONE_THREAD, 0),
    "clone of a thread in a network of its own": system_call("clone", _THREAD | _CLONE_NEWNET, 0),
}


# Zeroes are a semaphore that nobody has posted.
_SEMAPHORE: Final = ctypes.create_string_buffer(64)


def wait_for_thread(function: str, argument: object) -> None:
    """Starts a thread that calls a function of the C library, and waits for the semaphore.

    Python's own threads make further system calls.
    """
    _LIBC.pthread_create(ctypes.byref(ctypes.c_ulong()), None, getattr(_LIBC, function), argument)
    _LIBC.sem_wait(_SEMAPHORE)


def run_in_thread() -> None:
    wait_for_thread("sem_post", _SEMAPHORE)


def open_in_thread() -> None:
    wait_for_thread("open", b"/etc/passwd")


def _spin_in_thread() -> None:
    lock = ctypes.byref(ctypes.c_int())
    _LIBC.pthread_spin_init(lock, 0)
    _LIBC.pthread_spin_lock(lock)
    wait_for_thread("pthread_spin_lock", lock)


# Each ends the process by SIGSYS unless threads are allowed.
FATAL_WITHOUT_THREADS: Final[dict[str, Callable[[], None]]] = {
    "clone of a thread": system_call("clone", _THREAD, 0),
    "clone3": system_call("clone3", 0, 0),
    "set_robust_list": system_call("set_robust_list", 0, 0),
    "rseq": system_call("rseq", 0, 0, 0, 0),
    "thread": run_in_thread,
}


def descriptors_that_can_be_written() -> list[int]:
    """Which of the descriptors 0 to 1023 take a byte."""
    found = []
    for number in range(1024):
        try:
            os.write(number, b"")
        except OSError:
            continue
        found.append(number)
    return found


def _write_everywhere() -> None:
    for number in range(1024):
        with suppress(OSError):
            os.write(number, b"rubbish")


def _spin() -> None:
    while True:
        pass


def _wait_for_ever() -> bool:
    return bool(os.read(REQUESTS, 1))


def _wait_and_reply(code: Code) -> None:
    os.read(REQUESTS, 1)
    os.write(REPLIES, Reply(code, 1, 1, 1).pack())
    os.read(REQUESTS, 1)


def _look_back() -> None:
    """Aborts if the shared memory has something of an earlier image."""
    os.lseek(MEMORY, 0, os.SEEK_SET)
    if SECRET in os.read(MEMORY, 64 * 2**20).partition(MARK)[0]:
        os.abort()


def _search_heap() -> None:
    """Aborts if the heap has the secret, which this process never has in one piece itself."""
    _LIBC.sbrk.restype = ctypes.c_void_p
    heap = ctypes.string_at(_HEAP_START, _LIBC.sbrk(0) - _HEAP_START)
    for part in heap.split(SECRET_HALVES[0])[1:]:
        if part.startswith(SECRET_HALVES[1]):
            os.abort()


def _raise_own_limit() -> None:
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))


def _spin_later() -> None:
    """Has the process spin after the image was answered: on reading the next request."""
    read = os.read

    def spin(descriptor: int, count: int) -> bytes:
        if descriptor == REQUESTS:
            _spin()
        return read(descriptor, count)

    os.read = spin


MARK: Final = b"attack:"
SECRET: Final = b"the earlier image's own bytes"
SECRET_HALVES: Final = (b"what an earlier image", b" has left on the heap")
# Other things to try, by name.
OTHERS: Final[dict[str, Callable[[], object]]] = {
    "rubbish on its pipe": lambda: os.write(REPLIES, b"rubbish" * 9),
    "half a reply": lambda: os.write(REPLIES, bytes(9)) and os.abort(),
    "a reply of no known code": lambda: os.write(REPLIES, Reply(99).pack()),
    "a crop without a size": lambda: os.write(REPLIES, Reply(Code.DONE).pack()) and _wait_for_ever(),
    "a limit that is not exceeded": lambda: (
        os.write(REPLIES, Reply(Code.OVER_LIMIT, 9, 9, 1).pack()) and _wait_for_ever()
    ),
    "a second report": lambda: os.write(REPLIES, Reply(Code.READY, 1, 1).pack()) and _wait_for_ever(),
    "everything written to": _write_everywhere,
    "spinning": _spin,
    "waiting": _wait_for_ever,
    "leaving": lambda: os._exit(0),
    "crashing": lambda: ctypes.string_at(0),
    "memory": lambda: bytes(2**40),
    "spinning later": _spin_later,
    "looking back": _look_back,
    "searching its heap": _search_heap,
    "large twice": lambda: os.write(REPLIES, Reply(Code.LARGE).pack()) and _wait_and_reply(Code.LARGE),
    "a report after large": lambda: os.write(REPLIES, Reply(Code.LARGE).pack()) and _wait_and_reply(Code.READY),
    "large and silence": lambda: os.write(REPLIES, Reply(Code.LARGE).pack()) and _wait_for_ever() and _wait_for_ever(),
    "closing its pipe": lambda: os.close(REPLIES),  # not in the list of calls
    "raising its limit": _raise_own_limit,
    "spinning in a thread": _spin_in_thread,
    "opening a file in a thread": open_in_thread,
}


def act(data: bytes) -> None:
    """Does what the image names after `MARK`; an ordinary image names nothing."""
    name = data.rpartition(MARK)[2].decode() if MARK in data else ""
    if name:
        {**FATAL, **FATAL_WITHOUT_THREADS, **OTHERS}[name]()
