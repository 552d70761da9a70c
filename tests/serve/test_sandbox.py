"""A confined process computes and answers; whatever else it tries ends it, or has no effect."""

import json
import os
import signal
import struct
import subprocess
import sys
from typing import Any

import pytest

from serve.config.settings import ROOT
from serve.imaging.sandbox import SEALED, filter_program
from tests.hostile.takeover import FATAL, FATAL_WITHOUT_THREADS

PRELUDE = """
import ctypes, errno, json, os, resource, signal, sys
from serve.imaging.sandbox import confine
from tests.hostile import takeover

def confined(do, memory=(1 << 28, 1 << 29), seal=True, parent=None, threads=False):
    "How a child of its own ends that is confined and then does this; what it wrote to descriptor 3."
    read, write = os.pipe()
    parent = parent or os.getpid()
    child = os.fork()
    if child == 0:
        os.dup2(write, 3)
        state = confine(parent, 3, memory, seal=seal, threads=threads)
        os.write(3, state.encode() + b" ")
        try:
            do()
        finally:
            os._exit(7)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = b""
    while data := os.read(read, 65536):
        text += data
    os.close(read)
    return [status, text.decode()]

"""


def run(code: str) -> Any:
    """What a fresh interpreter, of one thread, prints as JSON."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PRELUDE + code]
    return json.loads(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True).stdout)


def test_every_forbidden_thing_ends_it() -> None:
    code = """
fatal = {**takeover.FATAL, **takeover.FATAL_WITHOUT_THREADS}
print(json.dumps({name: confined(do) for name, do in fatal.items()}))
"""
    assert run(code) == {name: [-signal.SIGSYS, f"{SEALED} "] for name in (*FATAL, *FATAL_WITHOUT_THREADS)}


def test_where_threads_are_allowed_everything_else_ends_it_too() -> None:
    code = "print(json.dumps({name: confined(do, threads=True) for name, do in takeover.FATAL.items()}))"
    assert run(code) == {name: [-signal.SIGSYS, f"{SEALED} "] for name in FATAL}


def test_a_thread_runs_under_the_same_filter() -> None:
    code = """
def do():
    takeover.run_in_thread()
    os.write(3, b"has had a thread")
    takeover.open_in_thread()

print(json.dumps(confined(do, threads=True)))
"""
    assert run(code) == [-signal.SIGSYS, f"{SEALED} has had a thread"]


def test_clone3_is_said_not_to_exist_so_that_threads_start_by_clone() -> None:
    code = """
def do():
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(435, 0, 0) == -1
    os.write(3, errno.errorcode[ctypes.get_errno()].encode())

print(json.dumps(confined(do, threads=True)))
"""
    assert run(code) == [7, f"{SEALED} ENOSYS"]


def test_only_what_it_was_given_can_be_written_to() -> None:
    code = "print(json.dumps(confined(lambda: os.write(3, repr(takeover.descriptors_that_can_be_written()).encode()))))"
    assert run(code) == [7, f"{SEALED} [3]"]


def test_its_limits_hold_without_the_filter_too() -> None:
    code = """
def do(names=("CORE", "FSIZE", "NPROC", "NOFILE")):
    for name in names:
        assert resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) == (0, 0), name
    try:
        open("/etc/passwd")
    except OSError as error:
        os.write(3, error.strerror.encode())
    try:
        bytes(1 << 27)
        bytes(1 << 29)
    except MemoryError:
        os.write(3, b", no memory")

def do_with_threads():
    do(("CORE", "FSIZE", "NOFILE"))
    assert resource.getrlimit(resource.RLIMIT_NPROC) == before
    takeover.run_in_thread()

before = resource.getrlimit(resource.RLIMIT_NPROC)
print(json.dumps([confined(do, seal=False), confined(do_with_threads, seal=False, threads=True)]))
"""
    assert run(code) == [[7, "isolated Too many open files, no memory"]] * 2


def test_it_does_not_outlive_a_parent_that_has_ended_already() -> None:
    assert run("print(json.dumps(confined(lambda: None, parent=os.getppid())))") == [1, ""]


def test_the_system_kills_it_before_its_parent_and_hides_its_memory() -> None:
    code = """
def do():
    import time
    os.write(3, b".")
    os.read(4, 1)

read, write = os.pipe()
gate, open_gate = os.pipe()
parent, child = os.getpid(), os.fork()
if child == 0:
    os.dup2(gate, 24); os.dup2(write, 23); os.dup2(24, 4); os.dup2(23, 3)
    confine(parent, 4, (1 << 28, 1 << 29))
    do()
os.read(read, 1)
status = open(f"/proc/{child}/status").read()
print(json.dumps([
    open(f"/proc/{child}/oom_score_adj").read().strip(),
    [line.split()[1] for line in status.splitlines() if line.startswith(("Seccomp:", "NoNewPrivs:", "Threads:"))],
    os.stat(f"/proc/{child}/maps").st_uid,
]))
os.kill(child, signal.SIGKILL)
"""
    score, flags, owner = run(code)
    assert score == "1000"
    assert sorted(flags) == ["1", "1", "2"]
    assert owner == 0  # of a process that is not dumpable (proc(5))


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_kills_other_architectures_and_every_call_that_is_not_listed(machine: str, threads: bool) -> None:
    """The program is run here as the kernel would, so that both machines' are checked on either."""
    program = filter_program(machine, threads)
    assert program
    steps = list(struct.iter_unpack("=HBBI", program))

    def verdict(architecture: int, number: int, protection: int = 0, flags: int = 0) -> str:
        data = {0: number, 4: architecture, 16: flags, 32: protection}
        word = at = 0
        while True:
            code, if_true, if_false, operand = steps[at]
            at += 1
            if code == 0x20:
                word = data[operand]
            elif code == 0x06:
                return {0x7FFF_0000: "allow", 0x8000_0000: "kill", 0x0005_0026: "no such call"}[operand]
            else:
                holds = word == operand if code == 0x15 else bool(word & operand)
                at += if_true if holds else if_false

    own, other = (0xC000_003E, 0xC000_00B7) if machine == "x86_64" else (0xC000_00B7, 0xC000_003E)
    mapping = (9, 10) if machine == "x86_64" else (222, 226)
    allowed = [number for number in range(1024) if verdict(own, number) == "allow"]
    more = {"x86_64": {273, 334}, "aarch64": {99, 293}}[machine]  # set_robust_list, rseq
    assert len(allowed) == 19 + 2 * threads
    assert more <= set(allowed) if threads else not more & set(allowed)
    thread = {number for number in range(1024) if verdict(own, number, flags=0x3D_0F00) == "allow"} - set(allowed)
    assert thread == ({56 if machine == "x86_64" else 220} if threads else set())
    assert [number for number in range(1024) if verdict(own, number) == "no such call"] == [435] * threads
    assert [number for number in allowed if verdict(own, number, protection=4 | 1) == "kill"] == list(mapping)
    assert all(verdict(other, number) == "kill" for number in range(1024))
    assert all(verdict(own, number | 0x4000_0000) == "kill" for number in range(1024))  # x32's calls


def test_a_machine_without_a_list_has_no_filter() -> None:
    assert filter_program("riscv64") is None
