"""Confines a decoder process: resource limits and, on Linux, a seccomp filter that allows the calls decoding needs.

A sealed process can compute, read and write what it has open, and end. An architecture without a list of system calls,
another system, or a kernel that forbids filters leaves it isolated: with its limits, but without the filter.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

SEALED, ISOLATED = "sealed", "isolated"

# From linux/prctl.h.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
# From linux/capability.h: _LINUX_CAPABILITY_VERSION_3.
_CAPABILITY_VERSION: Final = 0x2008_0522
# From linux/seccomp.h, linux/filter.h and linux/bpf_common.h.
_MODE_FILTER: Final = 2
_KILL_PROCESS: Final = 0x8000_0000
_ALLOW: Final = 0x7FFF_0000
_NO_SUCH_CALL: Final = 0x0005_0000 | errno.ENOSYS
_LOAD_WORD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_BITS: Final = 0x45
_RETURN: Final = 0x06
# Offsets in struct seccomp_data: the call's number, the architecture, the low half of the first and third argument.
_NUMBER_AT, _ARCHITECTURE_AT, _FLAGS_AT, _PROTECTION_AT = 0, 4, 16, 32
_PROT_EXEC: Final = 4
# Resources of which a decoder gets none: core dumps, files to write, further descriptors.
_FORBIDDEN: Final = ("CORE", "FSIZE", "NOFILE")
# The flags with which glibc's pthread_create calls clone, CLONE_THREAD among them (linux/sched.h).
_THREAD_FLAGS: Final = 0x003D_0F00


class _Machine(NamedTuple):
    """A machine's AUDIT_ARCH, and the numbers of system calls.

    Attributes:
        calls: what decoding takes.
        mapping: allowed unless memory becomes executable.
        threads: what a thread takes as well, which starts by clone; its successor clone3 has flags that a filter
            cannot see, and glibc falls back to clone where there is no clone3.
    """

    architecture: int
    calls: dict[str, int]
    mapping: dict[str, int]
    threads: dict[str, int]


_MACHINES: Final = {
    "x86_64": _Machine(
        0xC000_003E,
        {
            "read": 0,
            "write": 1,
            "fstat": 5,
            "lseek": 8,
            "munmap": 11,
            "brk": 12,
            "rt_sigaction": 13,
            "rt_sigprocmask": 14,
            "rt_sigreturn": 15,
            "sched_yield": 24,
            "mremap": 25,
            "madvise": 28,
            "exit": 60,
            "futex": 202,
            "clock_gettime": 228,
            "exit_group": 231,
            "getrandom": 318,
        },
        {"mmap": 9, "mprotect": 10},
        {"set_robust_list": 273, "rseq": 334, "clone": 56, "clone3": 435},
    ),
    "aarch64": _Machine(
        0xC000_00B7,
        {
            "lseek": 62,
            "read": 63,
            "write": 64,
            "fstat": 80,
            "exit": 93,
            "exit_group": 94,
            "futex": 98,
            "clock_gettime": 113,
            "sched_yield": 124,
            "rt_sigaction": 134,
            "rt_sigprocmask": 135,
            "rt_sigreturn": 139,
            "brk": 214,
            "munmap": 215,
            "mremap": 216,
            "madvise": 233,
            "getrandom": 278,
        },
        {"mmap": 222, "mprotect": 226},
        {"set_robust_list": 99, "rseq": 293, "clone": 220, "clone3": 435},
    ),
}


def confine(parent: int, keep: int, memory: tuple[int, int], *, seal: bool = True, threads: bool = False) -> str:
    """Confines the calling process, which must have one thread.

    Args:
        parent: the process whose end is this one's.
        keep: the descriptors from 3 to this number stay open.
        memory: bytes of address space that may be added, now and once the parent allows it.
        seal: whether to try the filter.
        threads: whether threads may be started. Their number is then not limited, because the system's limit counts
            all processes of the user.

    Returns:
        `SEALED` or `ISOLATED`.
    """
    libc = ctypes.CDLL(None)
    ends_with_parent = sys.platform == "linux" and libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if os.getppid() != parent:  # it ended before this process could be told
        os._exit(1)
    os.closerange(0, 3)
    os.closerange(keep + 1, _open_limit())
    if sys.platform == "linux":
        with suppress(OSError):  # first, because a process that is not dumpable may not write there
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.capset(struct.pack("=II", _CAPABILITY_VERSION, 0), bytes(24))  # drops all, in case the user is root
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    in_use = _address_space()
    limited = _limit("AS", in_use + memory[0], in_use + memory[1])
    for name in _FORBIDDEN if threads else (*_FORBIDDEN, "NPROC"):  # a thread counts as a process
        limited = _limit(name, 0, 0) and limited
    return SEALED if seal and ends_with_parent and limited and _install_filter(libc, threads) else ISOLATED


def filter_program(machine: str, threads: bool = False) -> bytes | None:
    """Returns the filter for a machine as the kernel takes it, an array of struct sock_filter; None without a list."""
    if machine not in _MACHINES:
        return None
    return b"".join(struct.pack("=HBBI", *step) for step in _steps(_MACHINES[machine], threads))


def _steps(machine: _Machine, threads: bool) -> Iterator[tuple[int, int, int, int]]:
    """Yields the filter's instructions: code, steps to skip if true and if false, operand."""
    yield _LOAD_WORD, 0, 0, _ARCHITECTURE_AT
    yield _JUMP_EQUAL, 1, 0, machine.architecture
    yield _RETURN, 0, 0, _KILL_PROCESS
    yield _LOAD_WORD, 0, 0, _NUMBER_AT
    for number in machine.calls.values():
        yield _JUMP_EQUAL, 0, 1, number
        yield _RETURN, 0, 0, _ALLOW
    if threads:
        yield from _thread_steps(**machine.threads)
    yield _JUMP_EQUAL, 2, 0, machine.mapping["mmap"]
    yield _JUMP_EQUAL, 1, 0, machine.mapping["mprotect"]
    yield _RETURN, 0, 0, _KILL_PROCESS
    yield _LOAD_WORD, 0, 0, _PROTECTION_AT
    yield _JUMP_BITS, 0, 1, _PROT_EXEC
    yield _RETURN, 0, 0, _KILL_PROCESS
    yield _RETURN, 0, 0, _ALLOW


def _thread_steps(set_robust_list: int, rseq: int, clone: int, clone3: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields the instructions for the calls that a thread takes."""
    for number, verdict in ((set_robust_list, _ALLOW), (rseq, _ALLOW), (clone3, _NO_SUCH_CALL)):
        yield _JUMP_EQUAL, 0, 1, number
        yield _RETURN, 0, 0, verdict
    yield _JUMP_EQUAL, 0, 4, clone
    yield _LOAD_WORD, 0, 0, _FLAGS_AT
    yield _JUMP_EQUAL, 0, 1, _THREAD_FLAGS
    yield _RETURN, 0, 0, _ALLOW
    yield _RETURN, 0, 0, _KILL_PROCESS


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _install_filter(libc: ctypes.CDLL, threads: bool) -> bool:
    """Returns whether the filter holds from now on."""
    steps = filter_program(os.uname().machine, threads) if sys.platform == "linux" else None
    if steps is None:
        return False
    program = _Program(len(steps) // 8, steps)
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _limit(name: str, soft: int, hard: int) -> bool:
    """Sets a resource limit, or leaves a lower one; returns whether the system has it."""
    try:
        kind = getattr(resource, f"RLIMIT_{name}")
        inherited = resource.getrlimit(kind)[1]
        if inherited != resource.RLIM_INFINITY:
            hard = min(hard, inherited)
        resource.setrlimit(kind, (min(soft, hard), hard))
    except (AttributeError, OSError, ValueError):
        return False
    return True


def _open_limit() -> int:
    """Returns a number above every open descriptor."""
    folder = Path("/proc/self/fd")
    if folder.exists():
        return max(int(entry.name) for entry in folder.iterdir()) + 1
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_536)


def _address_space() -> int:
    """Returns the bytes of this process's address space; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
