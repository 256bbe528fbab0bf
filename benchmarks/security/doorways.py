"""The doors of SE-01: where the product reads files that others may have made. Each tells what was wrong with its answer, or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.inputs.command import command
from benchmarks.security.artifacts import put

Knock = Callable[[str, Path], str]
"""Given an artifact's name and an empty folder; what was wrong, empty if it was refused in words."""
SAID: list[str] = []
"""What was said to each, for whoever reads the raw results."""
_REFUSED = (1, 2, 3, 4)
_MOST_WORDS = 2000
_GRID = """\
name: hostile
dataset: {dataset}
model: {{mlp: {{hidden: [16]}}}}
optimizer: {{sgd: {{lr: 0.1}}}}
train: {{epochs: 1}}
control_arms: []
density: 0.25
layer: csr
{more}
measure: {{level: none}}
"""
_MODEL = "model.safetensors"
_PIXEL = "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c6360606000000004000120c3a6c90000000049454e44ae426082"


def told(path: Path, *arguments: str) -> str:
    """Empty if a command ended by refusing the artifact at ``path``, by its name and in few words."""
    before = dict(os.environ)
    try:
        code, text = command(*arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)  # a command tells its processes its settings
    if code == 5:  # a trial's end
        state, _, reason = text.partition(": ")
        return _of_state(state.split()[-1] if state.split() else "", reason, path.name)
    SAID.append(text.strip()[:300])
    if "bug of sparsefleet" in text or "Traceback" in text:
        return f"a bug: {text[-300:]}"
    if len(text) > _MOST_WORDS or path.name not in text:
        return f"of {len(text)} characters, without the file's name: {text[:300]}"
    return "" if code in _REFUSED and "error: " in text else f"ended with {code}: {text[-200:]}"


def doors_of(group: str, good: Path) -> Iterator[tuple[str, Knock]]:
    """The doors of a group by name; what they need that is good lies in ``good``."""
    good.mkdir()
    return {"files": _files, "trials": _trials, "mlflow": _mlflow}[group](good)


# Commands that are given a file or a folder


def _files(good: Path) -> Iterator[tuple[str, Knock]]:
    _run_trial(_spec(layer={"name": "csr"}, density=0.25, method={"rewirer": {"name": "set", "params": {"every": 10}}}), good / "trial")
    steps = next(path.relative_to(good / "trial").as_posix() for path in (good / "trial").glob("mask-steps/*.safetensors"))
    for name in ("record.json", "spec.json"):
        yield f"measure FOLDER, {name}", _in_folder(good, name, "measure")
    drawn = {"model.safetensors": "weights", "masks.safetensors": "masks", "manifest.json": "masks", steps: "evolution"}
    for name, kind in {**drawn, "record.json": "density", "spec.json": "density"}.items():
        yield f"pictures FOLDER, {Path(name).name}", _in_folder(good, name, "pictures", "--kind", kind)
    yield "run SPEC.json", _named("spec.json", "run", "{}")
    yield "plan GRID.yaml", _named("grid.yaml", "plan", "{}")
    for name in ("plugin.py", "plugin.whl"):
        yield f"--plugin {name}", _plugin(name)
    yield "allow-list", _named("allowed.toml", "plan", "quickstart", variable="SPARSEFLEET_ALLOW_LIST")
    for suffix in (".npy", ".safetensors", ".csv"):
        yield f"connections, {suffix}", _connections(suffix)
    yield "ledger", _ledger
    yield "data set mnist", _mnist("")
    yield "data set mnist, gzip", _mnist(".gz")
    yield "data set cifar10", _cifar
    yield "data set image-folder", _pictures


def _in_folder(good: Path, name: str, *words: str) -> Knock:
    def knock(artifact: str, folder: Path) -> str:
        trial = folder / "trial"
        shutil.copytree(good / "trial", trial)
        put(artifact, trial / name)
        return told(trial / name, words[0], str(trial), *words[1:], *(["--out", str(folder / "out")] if words[0] == "pictures" else []))

    return knock


def _named(name: str, *words: str, variable: str = "") -> Knock:
    """``{}`` in the words is the artifact; so is the variable's value."""

    def knock(artifact: str, folder: Path) -> str:
        path = folder / name
        put(artifact, path)
        if variable:
            os.environ[variable] = str(path)
        try:
            return told(path, *(word.format(path) for word in words))
        finally:
            os.environ.pop(variable, None)

    return knock


def _plugin(name: str) -> Knock:
    def knock(artifact: str, folder: Path) -> str:
        put(artifact, folder / name)
        more = "method: {pruner: of-the-file}"  # a broken plugin that no grid asks for harms none
        return _of_grid(folder / name, folder, "digits", more, "plan", "--plugin", str(folder / name))

    return knock


def _of_grid(path: Path, folder: Path, dataset: str, more: str, *words: str) -> str:
    grid = folder / "good.yaml"
    grid.write_text(_GRID.format(dataset=dataset, more=more))
    return told(path, words[0], str(grid), *words[1:], "--data", str(folder))


def _connections(suffix: str) -> Knock:
    def knock(artifact: str, folder: Path) -> str:
        path = folder / f"sites{suffix}"
        put(artifact, path)
        more = f"method: {{rewirer: static}}\nconnectivity: {{user: {{file: sites{suffix}, layer: fc1, others: random}}}}"
        return _of_grid(path, folder, "digits", more, "plan")

    return knock


def _mnist(suffix: str) -> Knock:
    def knock(artifact: str, folder: Path) -> str:
        raw = folder / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for split in ("train", "t10k"):
            for kind in ("images-idx3", "labels-idx1"):
                (raw / f"{split}-{kind}-ubyte{suffix}").write_bytes(b"")
        path = raw / f"train-images-idx3-ubyte{suffix}"
        put(artifact, path)
        return _trained_on(path, folder, "mnist")

    return knock


def _cifar(artifact: str, folder: Path) -> str:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        (batches / name).write_bytes(b"")
    put(artifact, batches / "data_batch_1")
    return _trained_on(batches / "data_batch_1", folder, "cifar10")


def _pictures(artifact: str, folder: Path) -> str:
    for split in ("train", "test"):
        for name in ("a", "b"):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            (place / "1.png").write_bytes(bytes.fromhex(_PIXEL))
    path = folder / "images" / "train" / "a" / "0.png"
    put(artifact, path)
    return _trained_on(path, folder, "{image-folder: {classes: 2, size: 8}}")


def _trained_on(path: Path, folder: Path, dataset: str) -> str:
    """A data set that is not itself is bad input, or else the trial's end."""
    return _of_grid(path, folder, dataset, "method: {pruner: magnitude}", "run", "--point", "0")


def _ledger(artifact: str, folder: Path) -> str:
    put(artifact, folder / "ledger.db")
    return told(folder / "ledger.db", "status", "--home", str(folder))


# What a trial is given


def _trials(good: Path) -> Iterator[tuple[str, Knock]]:
    from sparsefleet.ledger.store import ArtifactStore

    method = {"pruner": {"name": "magnitude"}, "schedule": {"kind": "one-shot"}}
    sparse = _spec(layer={"name": "csr"}, density=0.25, method=method)
    dense = _spec()
    _run_trial(dense, good / "dense")
    _run_trial(sparse, good / "sparse")
    weights = {**sparse, "start": {"trial": "0" * 12, "row": "0" * 12, "gives": "weights"}}
    mask = {**sparse, "method": {"rewirer": {"name": "static"}}, "start": {"trial": "0" * 12, "row": "0" * 12, "gives": "mask"}}
    yield "trial that starts from weights", _start(good / "dense", "model.safetensors", weights)
    yield "trial that starts from a mask", _start(good / "sparse", "masks.safetensors", mask)
    yield "trial that starts from a mask, manifest", _start(good / "sparse", "manifest.json", mask)
    yield "trial with a checkpoint", _checkpoint(good / "stopped")
    yield "timing of a model", _timed(good / "sparse", "model.safetensors")
    yield "timing of masks", _timed(good / "sparse", "masks.safetensors")
    yield "artifact store", lambda artifact, folder: _stored(ArtifactStore((folder / "store").as_uri()), artifact, folder)
    yield "bundle of plugins", lambda artifact, folder: _bundle(ArtifactStore((folder / "store").as_uri()), artifact, folder)


def _spec(**more: Any) -> dict[str, Any]:
    basic = {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "params": {"hidden": [16]}},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "train": {"epochs": 1, "batch_size": 64},
    }
    return {**basic, **more}


def _run_trial(spec: dict[str, Any], folder: Path, start: Path | None = None, **more: Any) -> Any:
    from sparsefleet.trial.request import TrialRequest
    from sparsefleet.trial.run import run_trial
    from sparsefleet.trial.spec import TrialSpec

    request = TrialRequest(spec=TrialSpec.model_validate(spec), trial_key="k" * 64, workdir=folder, data_root=folder, start=start, **more)
    return run_trial(request)


def _of_state(state: str, reason: str, *words: str) -> str:
    """Empty if a trial's end is a refusal in all these words."""
    SAID.append(f"{state}: {reason.strip()[:300]}")
    if "Traceback" in reason or re.match(r"\w+Error: ", reason):
        return f"a bug: {reason[-300:]}"
    refused = state in ("PLUGIN_ERROR", "INVALID", "DAMAGED") and all(word in reason for word in words)
    return "" if refused else f"the trial is {state}, without {', '.join(words)}: {reason[:200]}"


def _start(good: Path, name: str, spec: dict[str, Any]) -> Knock:
    def knock(artifact: str, folder: Path) -> str:
        shutil.copytree(good, folder / "start")
        put(artifact, folder / "start" / name)
        record = _run_trial(spec, folder / "work", folder / "start")
        return _of_state(record.state.value, record.reason or "", name, *(["shape"] if artifact == "bad CSR" and name == _MODEL else []))

    return knock


def _checkpoint(good: Path) -> Knock:
    """One of a real sparse trial, with a digest that is right: it is set aside, and training begins anew; or the trial says why not."""
    spec = _spec(layer={"name": "csr"}, density=0.25, method={"rewirer": {"name": "set", "params": {"every": 10}}})
    _stopped(spec, good)
    facts = json.loads((good / "checkpoint.json").read_bytes().partition(b"\n")[2])["facts"]

    def knock(artifact: str, folder: Path) -> str:
        work = folder / "work"
        work.mkdir()
        path = work / "checkpoint.safetensors"
        shutil.copyfile(good / path.name, path)
        put(artifact, path)
        digest = "0" * 64 if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        side = json.dumps({"sha256": digest, "facts": facts}).encode()
        (work / "checkpoint.json").write_bytes(hashlib.sha256(side).hexdigest().encode() + b"\n" + side)
        record = _run_trial(spec, work)
        if artifact == "bad CSR":  # whole, by its digest: the check of the indices itself must refuse it
            return _of_state(record.state.value, record.reason or "", "the checkpoint does not fit", "connections lie outside")
        if record.state.value != "SUCCEEDED":
            return _of_state(record.state.value, record.reason or "", "checkpoint")
        said = any("checkpoint set aside" in warning for warning in record.warnings)
        return "" if said and (work / f"{path.name}.damaged").is_symlink() == (artifact == "symlink") else "used without a word"

    return knock


def _stopped(spec: dict[str, Any], folder: Path) -> None:
    """Leaves the folder of a trial that was killed between two steps, with its checkpoint."""
    from sparsefleet.trial.training import Training

    step = Training._train_step

    def until_15(training: Training, x: Any, y: Any) -> None:
        if training.step == 15:
            raise KeyboardInterrupt
        step(training, x, y)

    with mock.patch.object(Training, "_train_step", until_15), suppress(KeyboardInterrupt):
        _run_trial(spec, folder, checkpoint_every_s=1e-9)


def _timed(good: Path, name: str) -> Knock:
    """The process that times what it is given; the command that starts it is not harmed by its death."""
    from sparsefleet.measure.child import run
    from sparsefleet.measure.config import groups
    from sparsefleet.measure.passes import MeasureRequest, Pass

    record = json.loads((good / "record.json").read_text())
    trial: Any = type("Trial", (), {"key": "k" * 64, "spec": record["spec"], "record": record, "twin_key": None, "rival_key": None})()
    job = groups([trial], [1], ["forward"])[0]

    def knock(artifact: str, folder: Path) -> str:
        shutil.copytree(good, folder / "trial")
        put(artifact, folder / "trial" / name)
        masks = folder / "trial"
        request = MeasureRequest(job=job, model=folder / "trial" / "model.safetensors", masks=masks, level="screen", part=Pass(kind="time"))
        result = run(request)
        return _of_state(result.state, result.reason or "", name, *(["row pointer"] if artifact == "bad CSR" and name == _MODEL else []))

    return knock


def _stored(store: Any, artifact: str, folder: Path) -> str:
    """In the place of a file that is named by its digest."""
    from sparsefleet.errors import SparsefleetError

    (folder / "good").write_bytes(b"good")
    sha = store.put(folder / "good").sha256
    put(artifact, folder / "store" / sha[:2] / sha)
    try:
        store.get(sha, folder / "got")
    except SparsefleetError as error:
        SAID.append(str(error)[:300])
        return "" if re.search("digest|read", str(error)) else f"unclear: {error}"
    return "taken for what it is not"


def _bundle(store: Any, artifact: str, folder: Path) -> str:
    """Stored under its own digest, as if a driver had sent it."""
    from sparsefleet.errors import SparsefleetError
    from sparsefleet.fleet.bundle import unpacked

    put(artifact, folder / "bundle")
    if (folder / "bundle").is_symlink():  # which cannot be stored, but may lie there
        sha = "0" * 64
        (folder / "store" / sha[:2]).mkdir(parents=True, exist_ok=True)
        (folder / "bundle").rename(folder / "store" / sha[:2] / sha)
    else:
        sha = store.put(folder / "bundle").sha256
    try:
        unpacked({"sha256": sha}, store, folder / "node" / "home")
    except SparsefleetError as error:
        SAID.append(str(error)[:300])
        return "" if "bundle" in str(error) or sha[:12] in str(error) else f"unclear: {error}"
    return "unpacked"


# What comes from MLflow


def _mlflow(good: Path) -> Iterator[tuple[str, Knock]]:
    from sparsefleet.track import names, server

    uri = server.local_uri(good)
    client = server.connect(uri, create=True)
    experiment = client.create_experiment("hostile", artifact_location=(good / "artifacts").as_uri())
    tags = {names.KIND: "sweep", names.SWEEP: "hostile-12345678", names.HOME: "h"}

    def knock(artifact: str, folder: Path) -> str:
        run = client.create_run(experiment, tags=tags)
        place = good / "artifacts" / run.info.run_id / "artifacts"
        place.mkdir(parents=True)
        put(artifact, place / names.SWEEP_JSON)
        try:
            return told(place / names.SWEEP_JSON, "compare", "hostile", "--from", "mlflow", "--mlflow-uri", uri)
        finally:
            client.delete_run(run.info.run_id)

    yield "compare --from mlflow", knock
