"""One trial from its spec to its record."""

from __future__ import annotations

import ctypes
import json
import sys
import time
import traceback
from datetime import datetime, timezone

import torch

from sparsefleet.errors import Diverged, SparsefleetError
from sparsefleet.redact import redacted
from sparsefleet.registry import Registry, catalog
from sparsefleet.space import means_no_space
from sparsefleet.trial import files
from sparsefleet.trial.checkpoint import drop_checkpoint
from sparsefleet.trial.identity import device_class, plugins_used
from sparsefleet.trial.log import Log
from sparsefleet.trial.observe import observe
from sparsefleet.trial.record import PluginUsed, Record, State
from sparsefleet.trial.request import TrialRequest
from sparsefleet.trial.training import ProgressReport, Training

_TRACE_LINES = 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def run_trial(request: TrialRequest, progress: ProgressReport | None = None) -> Record:
    """Trains, evaluates and saves one trial; its own failures become the record's state.

    The work folder then holds the model, the mask artifact with pictures over the steps, the spec, the environment and, last, record.json.
    A checkpoint in the work folder is taken up where it stands; the result is the same to the last bit as without the interruption.
    """
    started, clock = _now(), time.monotonic()
    request.workdir.mkdir(parents=True, exist_ok=True)
    registry = Registry(catalog())
    log = Log()
    trial: Training | None = None
    state, reason = State.SUCCEEDED, None
    try:
        observe(registry, log, "sparsefleet_before_trial", trial=request.spec.to_json())
        _set_precision(request)
        _return_large_blocks()
        trial = Training(request, registry, log, progress or (lambda _: None))
        trial.prepare()
        trial.train()
        trial.finish()
    except Diverged as error:
        state, reason = State.DIVERGED, str(error)
    except (MemoryError, torch.OutOfMemoryError) as error:
        state, reason = State.OOM, f"{type(error).__name__}: {error}"
    except Exception as error:
        if means_no_space(error):
            raise  # the disk's end, not the trial's
        state = State.OOM if _is_cpu_oom(error) else State.PLUGIN_ERROR
        reason = _explain(error, request, registry)
        observe(registry, log, "sparsefleet_on_trial_error", trial=request.spec.to_json(), error=error)
    record = Record(
        trial_key=request.trial_key,
        spec_id=request.spec.spec_id,
        state=state,
        reason=redacted(reason) if reason else reason,
        attempt=request.attempt,
        spec=request.spec.to_json(),
        plugins=_plugins(request, registry),
        code=request.code,
        data=request.data,
        device={"device": request.device, "class": device_class(request.device), "threads": torch.get_num_threads()},
        counts=trial.counts() if trial else None,
        accuracy=trial.accuracy(state) if trial else None,
        curves=log.curves,
        facts=log.facts,
        warnings=log.warnings,
        started=started,
        ended=_now(),
        wall_s=time.monotonic() - clock,
        phases_s=trial.phases_s if trial else {},
    )
    observe(registry, log, "sparsefleet_after_trial", trial=request.spec.to_json(), result=record.to_json())
    (request.workdir / files.SPEC).write_text(json.dumps(request.spec.to_json(), indent=1, sort_keys=True))
    (request.workdir / files.RECORD).write_text(json.dumps(record.to_json(), allow_nan=False))
    if state in (State.SUCCEEDED, State.DIVERGED):
        drop_checkpoint(request.workdir)
    return record


def _plugins(request: TrialRequest, registry: Registry) -> list[PluginUsed]:
    try:
        return plugins_used(request.spec, registry.catalog)
    except SparsefleetError:  # the trial failed because one of them is missing; its reason says so
        return []


def _set_precision(request: TrialRequest) -> None:
    torch.set_num_threads(request.threads)
    tf32 = request.spec.train.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)


def _return_large_blocks() -> None:
    """Lets freed blocks of 16 MiB and more go back to the system at once.

    glibc comes to keep blocks of up to 32 MiB in its heap, which a wide network's activations then fragment: it grows by a quarter in ten steps.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have no such setting and no such habit
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 16 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)  # setting the former alone would reset this to 128 KiB, and smaller layers would pay for it


def _is_cpu_oom(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _explain(error: Exception, request: TrialRequest, registry: Registry) -> str:
    """What was raised and in whose code comes first, since lists show one line; then the end of the traceback."""
    if isinstance(error, SparsefleetError):
        return str(error)
    try:
        lines = "".join(traceback.format_exception(error)).strip().splitlines()
    except Exception as second:  # noqa: BLE001  formatting calls the error's own methods
        lines = [f"{type(error).__name__}: (its text raised {type(second).__name__})"]
    return "\n".join([lines[-1] + _culprit(error, request, registry), *lines[1 - _TRACE_LINES :]])


def _culprit(error: Exception, request: TrialRequest, registry: Registry) -> str:
    """`` (in rewirer/mine of my-plugins 1.2)``, the plugin of the trial whose file the error passed last; empty where it passed none."""
    files_passed = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    found, place = "", -1
    for used in _plugins(request, registry):
        module = sys.modules.get(registry.catalog.get(used.family, used.name).module)
        file = getattr(module, "__file__", None)
        last = max((n for n, passed in enumerate(files_passed) if passed == file), default=-1)
        if last > place:
            found, place = f" (in {used.family}/{used.name} of {used.distribution} {used.version})", last
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
