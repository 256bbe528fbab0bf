"""Bodies for forked children: what a plugin may do to the process that it runs in."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
import time


def ok(job, progress):
    print("hello from the child")
    progress({"step": 1})
    return {"value": job.get("value"), "sid": os.getsid(0), "pid": os.getpid()}


def raises(job, progress):
    raise ValueError("no such site")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError

    def __reduce__(self):
        raise RuntimeError


def unprintable(job, progress):
    raise Unprintable


def interrupts(job, progress):
    raise KeyboardInterrupt


def exit_0(job, progress):
    sys.exit(0)


def exit_3(job, progress):
    sys.exit(3)


def os_exit(job, progress):
    os._exit(0)


def segfault(job, progress):
    ctypes.string_at(0)


def abort(job, progress):
    os.abort()


def kill_self(job, progress):
    os.kill(os.getpid(), 9)


def close_files(job, progress):
    os.closerange(0, 4096)
    return {}


def sleep(job, progress):
    swallow = time.monotonic() + 100
    while time.monotonic() < swallow:
        try:
            time.sleep(1)
        except BaseException:  # noqa: BLE001
            continue


def hold_gil(job, progress):
    re.match(r"(a+)+$", "a" * 60 + "b")


def fork_bomb(job, progress):
    while True:
        try:
            os.fork()
        except OSError:
            continue


def leave_a_daemon(job, progress):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(100)
        os._exit(0)
    return {}


def answer_twice(job, progress):
    os.fork()
    return {"pid": os.getpid()}


def allocate(job, progress):
    import torch

    return {"n": torch.ones(512 << 20, dtype=torch.uint8).numel()}


def poison(job, progress):
    import torch

    torch.set_default_dtype(torch.float64)
    os.chdir("/")
    os.environ["POISON"] = "1"
    torch.nn.Linear.forward = None
    return {}


def look(job, progress):
    import torch

    return {"dtype": str(torch.get_default_dtype()), "poison": os.environ.get("POISON"), "forward": torch.nn.Linear.forward is not None}


def share_memory(job, progress):
    with open(job["shared"], "w+b") as file:
        file.truncate(1 << 16)
        job["kept"] = mmap.mmap(file.fileno(), 1 << 16)
    if job.get("then") == "crash":
        time.sleep(1.0)  # long enough to be seen
        ctypes.string_at(0)
    return {"warnings": []}


def hold_memory(job, progress):
    kept = [bytearray(os.urandom(1 << 20)) * 64]
    if os.fork() == 0:
        kept.append(bytearray(os.urandom(1 << 20)) * 400)
    time.sleep(60)
