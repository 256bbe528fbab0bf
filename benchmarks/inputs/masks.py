"""BI-05: two thousand masks that cannot be right, as artifacts, as files of connections and at the layers' own doors; each is refused, and none
ends the process."""

from __future__ import annotations

import json
import os
import pickle
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save, save_file

from benchmarks.figures import Figure, Run
from benchmarks.inputs.layers import attempt, is_refusal
from sparsefleet.errors import IntegrityError, UserError
from sparsefleet.nn.materialise import draw_connections
from sparsefleet.registry import Registry
from sparsefleet.trial.files import MANIFEST, MASKS
from sparsefleet.trial.masks import load_masks, pack_masks
from sparsefleet.trial.spec import PluginRef

SHAPE = (12, 9)
_PER_PROCESS = 250
_JUNK = (
    None,
    True,
    -1,
    0,
    1e999,
    float("nan"),
    2**40,
    2**70,
    "",
    "x",
    "int64",
    [],
    [0, 0],
    [2**62, 4],
    {},
    [[1]],
    "float32",
    "bits",
    "delta",
)


def good_artifact() -> tuple[bytes, dict[str, Any]]:
    """A mask artifact of two layers, one of them large and sparse."""
    near = torch.arange(0, SHAPE[0] * SHAPE[1], 2)
    far = torch.tensor([3, 70_000, 5_000_000, 99_999_999])
    packed = pack_masks({"a": (SHAPE, near), "b": ((10_000, 10_000), far)}, {"method": "set", "seed": 0, "step": 1})
    return packed.tensors, packed.manifest


def bad_artifact(folder: Path, rng: random.Random) -> str:
    """Writes a mask artifact with one or two faults; says which."""
    raw, manifest = good_artifact()
    manifest = json.loads(json.dumps(manifest))
    kind = rng.choice(("flip", "cut", "manifest", "layer", "tensor", "header", "text", "consistent"))
    if kind == "flip":
        at = rng.randrange(len(raw))
        raw = raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    elif kind == "cut":
        raw = raw[: rng.randrange(len(raw))]
    elif kind == "manifest":
        _spoil(manifest, rng.choice(("schema", "digest", "layers")), rng)
    elif kind == "layer":
        _spoil(manifest["layers"][rng.choice("ab")], rng.choice(("shape", "nnz", "encoding", "dtype", "digest")), rng)
    elif kind in ("tensor", "consistent"):
        tensors = load(raw)
        name = rng.choice("ab")
        dtype = rng.choice((torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64, torch.bool, torch.float16))
        shape = rng.choice(((0,), (), (3,), (2, 3), (14,), (4,), (1, 1, 1)))
        tensors[name] = (
            torch.randint(0, 2, shape).to(dtype) if rng.random() < 0.5 else torch.full(shape, rng.choice((-1, 127, 0, 1))).to(dtype)
        )
        if kind == "consistent":  # the manifest agrees with what is there
            manifest["layers"][name] |= {"dtype": str(dtype).removeprefix("torch."), "encoding": rng.choice(("bits", "delta"))}
        raw = save(tensors, metadata={"schema": "sf-masks/1"})
    elif kind == "header":
        raw = rng.choice((2**63, 2**40, len(raw) * 2, 0, 5)).to_bytes(8, "little") + raw[8:]
    (folder / MASKS).write_bytes(raw)
    text = json.dumps(manifest)
    (folder / MANIFEST).write_text(text[: rng.randrange(len(text))] if kind == "text" else text)
    return f"artifact/{kind}"


def _spoil(holder: dict[str, Any], name: str, rng: random.Random) -> None:
    holder[name] = rng.choice([junk for junk in _JUNK if junk is not holder[name] and junk != holder[name]])


def bad_connections(folder: Path, rng: random.Random) -> tuple[str, Path]:
    """Writes a file of connections that fit no layer of ``SHAPE``; says what is wrong with it."""
    n = rng.randrange(1, 20)
    sites = np.stack(np.divmod(np.array(sorted(rng.sample(range(SHAPE[0] * SHAPE[1]), n))), SHAPE[1])).astype(np.int64)
    faults: dict[str, Callable[[], Any]] = {
        "shape": lambda: rng.choice((sites.T.repeat(2, 1) if n != 2 else sites[0], sites[0], sites[None], np.int64(3), sites[:1])),
        "dtype": lambda: sites.astype(rng.choice((np.float32, np.float64, np.bool_, np.complex64, np.float16))),
        "nan": lambda: np.full((2, n), np.nan),
        "negative": lambda: sites - SHAPE[0],
        "beyond": lambda: sites + rng.choice((SHAPE[0], 2**31, 2**62)),
        "twice": lambda: np.concatenate([sites, sites[:, :1]], axis=1),
        "empty": lambda: sites[:, :0],
        "too many": lambda: np.repeat(sites, 200, axis=1),
        "swapped": lambda: np.array([[0], [SHAPE[0]]]) if SHAPE[0] > SHAPE[1] else sites + 99,
    }
    kind = rng.choice((*faults, "bytes", "cut", "pickled", "csv", "huge"))
    path = folder / f"c{rng.choice(('.npy', '.safetensors') if kind in faults or kind == 'cut' else ('.npy',))}"
    if kind in faults or kind == "cut":
        value = faults[kind]() if kind in faults else sites
        if path.suffix == ".npy":
            np.save(path, value, allow_pickle=False)
        else:
            save_file({rng.choice(("layer", "")) or "layer": torch.from_numpy(np.ascontiguousarray(value))}, path)
        if kind == "cut":
            raw = path.read_bytes()
            path.write_bytes(raw[: rng.randrange(len(raw))])
    elif kind == "pickled":
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 1), }"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickle.dumps([[1], [2]]))
    elif kind == "huge":
        header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (2, %d), }" % rng.choice((10**12, 10**18, 2**62))
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    elif kind == "csv":
        path = path.with_suffix(".csv")
        lines = ["row,col", rng.choice(("1", "a,b", "1,2,3", "1.5,2", "-1,0", "99,0", "0,99", "1,1\n1,1", "1e3,1", "\x00,1", f"{2**80},1"))]
        path.write_text("\n".join(lines if rng.random() < 0.8 else lines[1:]))
    else:
        path.write_bytes(rng.randbytes(rng.randrange(300)))
    return f"connections/{kind}", path


def check(first: int, n: int, answer: Path) -> None:
    """Tries ``n`` of them in this process and writes what became of each; what is being tried is written before."""
    good = {name: mask.flat.tolist() for name, mask in _loaded_good().items()}
    registry = Registry()
    with answer.open("a", buffering=1) as out, tempfile.TemporaryDirectory() as name:
        for number in range(first, first + n):
            rng = random.Random(number)
            folder = Path(name) / str(number)
            folder.mkdir()
            kind, act = _chosen(folder, rng, registry, good)
            out.write(json.dumps([number, kind, "tried"]) + "\n")
            out.write(json.dumps([number, kind, _end(act)]) + "\n")


def _loaded_good() -> Any:
    with tempfile.TemporaryDirectory() as name:
        raw, manifest = good_artifact()
        (Path(name) / MASKS).write_bytes(raw)
        (Path(name) / MANIFEST).write_text(json.dumps(manifest))
        return load_masks(Path(name))


def _chosen(folder: Path, rng: random.Random, registry: Registry, good: dict[str, list[int]]) -> tuple[str, Callable[[], object]]:
    door = rng.randrange(3)
    if door == 0:
        return bad_artifact(folder, rng), lambda: _read(folder, good)
    if door == 1:
        kind, path = bad_connections(folder, rng)
        return kind, lambda: _drawn(folder, path, registry)
    return attempt(rng)


def _read(folder: Path, good: dict[str, list[int]]) -> str:
    found = {name: mask.flat.tolist() for name, mask in load_masks(folder).items()}
    return "unchanged" if found == good else "accepted"


def _drawn(folder: Path, path: Path, registry: Registry) -> None:
    plugin = registry.build("connectivity", PluginRef(name="user", params={"file": str(path)})).located(folder)
    list(plugin.files(folder))
    plugin.check_layers(["layer"])
    nnz = plugin.nnz_of("layer", SHAPE, 10)
    draw_connections("layer", SHAPE, nnz, plugin, 0, torch.device("cpu"), None)


def _end(act: Callable[[], object]) -> str:
    try:
        return "unchanged" if act() == "unchanged" else "accepted"
    except Exception as error:  # noqa: BLE001  another one than a refusal is what is looked for
        return "refused" if isinstance(error, (UserError, IntegrityError)) or is_refusal(error) else traceback.format_exc()[-600:]


def figures(run: Run) -> list[Figure]:
    """Bad files that were refused, and processes that one of them ended."""
    n, ends, crashes, others = run.pick(2000, 250), Counter[str](), 0, []
    kinds = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="sparsefleet-masks-") as name:
        for first in range(0, n, _PER_PROCESS):
            answer = Path(name) / f"{first}.jsonl"
            code = "import sys; from pathlib import Path; from benchmarks.inputs.masks import check; check(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))"
            command = [sys.executable, "-W", "ignore", "-c", code, str(first), str(min(_PER_PROCESS, n - first)), str(answer)]
            status = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)[1])
            lines = [json.loads(line) for line in answer.read_text().splitlines()] if answer.exists() else []
            if status != 0:
                crashes += 1
                others.append(f"ended with {status} at {lines[-1] if lines else first}")
            for number, kind, end in lines:
                if end != "tried":
                    kinds[kind] += 1
                    # a flipped bit in a file's padding changes nothing; nothing else may be taken
                    end = "accepted" if end == "unchanged" and kind != "artifact/flip" else end
                    ends[end if end in ("refused", "unchanged") else "other"] += 1
                    if end not in ("refused", "unchanged"):
                        others.append(f"{number} {kind}: {end}")
    run.keep({"ends": ends, "kinds": kinds, "others": others[:20]})
    n_bad = n - ends["unchanged"]
    note = (
        "; ".join(one[:160] for one in others[:3]) or f"{ends['unchanged']} more were not changed by their flipped bit; {len(kinds)} kinds"
    )
    return [
        Figure("bad masks and connections refused", "masks", ends["refused"], target=n_bad, note=note),
        Figure("processes that one of them ended", "processes", crashes, target=0, at_least=False),
    ]
