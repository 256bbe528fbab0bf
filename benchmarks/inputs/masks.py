"""BI-05: two thousand mask artifacts and files of connections that cannot be right; each is refused, and none ends the process."""

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
        manifest[rng.choice(("schema", "digest", "layers"))] = rng.choice(_JUNK)
    elif kind == "layer":
        layer = manifest["layers"][rng.choice("ab")]
        layer[rng.choice(("shape", "nnz", "encoding", "dtype", "digest"))] = rng.choice(_JUNK)
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
            path = None
            if rng.random() < 0.5:
                kind = bad_artifact(folder, rng)
            else:
                kind, path = bad_connections(folder, rng)
            out.write(json.dumps([number, kind, "tried"]) + "\n")
            out.write(json.dumps([number, kind, _end(folder, path, registry, good)]) + "\n")


def _loaded_good() -> Any:
    with tempfile.TemporaryDirectory() as name:
        raw, manifest = good_artifact()
        (Path(name) / MASKS).write_bytes(raw)
        (Path(name) / MANIFEST).write_text(json.dumps(manifest))
        return load_masks(Path(name))


def _end(folder: Path, path: Path | None, registry: Registry, good: dict[str, list[int]]) -> str:
    try:
        if path is None:
            found = {name: mask.flat.tolist() for name, mask in load_masks(folder).items()}
            return "unchanged" if found == good else "accepted"  # a flipped bit in a file's padding changes nothing
        plugin = registry.build("connectivity", PluginRef(name="user", params={"file": str(path)})).located(folder)
        list(plugin.files(folder))
        plugin.check_layers(["layer"])
        nnz = plugin.nnz_of("layer", SHAPE, 10)
        conn = draw_connections("layer", SHAPE, nnz, plugin, 0, torch.device("cpu"), None)
        return f"accepted {conn.nnz}"
    except (UserError, IntegrityError):
        return "refused"
    except Exception:  # noqa: BLE001  that is what is looked for
        return traceback.format_exc()[-600:]


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
                    ends["refused" if end == "refused" else "unchanged" if end == "unchanged" else "other"] += 1
                    if end not in ("refused", "unchanged"):
                        others.append(f"{number} {kind}: {end}")
    run.keep({"ends": ends, "kinds": kinds, "others": others[:20]})
    n_bad = n - ends["unchanged"]
    note = "; ".join(one[:160] for one in others[:3]) or f"{ends['unchanged']} more were not changed by their fault; {len(kinds)} kinds"
    return [
        Figure("bad masks and connections refused", "files", ends["refused"], target=n_bad, note=note),
        Figure("processes that one of them ended", "processes", crashes, target=0, at_least=False),
    ]
