"""BI-01: thousands of random grids and byte strings. Each is a grid or one UserError, within a second and 100 MB."""

from __future__ import annotations

import copy
import json
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, NotRun, Run
from sparsefleet.errors import SparsefleetError
from sparsefleet.grid.counting import count_points
from sparsefleet.grid.load import SHIPPED, load_grid
from sparsefleet.grid.yaml_source import parse
from sparsefleet.registry import keep_catalog

_TOKENS = b"name: x\naxes: [ ] { } - ? : & * ! | > ' \" # % @ ` , \t \r\n --- ... << ~ null true .nan 1e3 0x1 \xff \xc3\xa9 \x00 \x1b[31m"
_SECONDS, _MIB = 1.0, 100.0
_SELF = Path("/proc/self")
_CLEAR = _SELF / "clear_refs"


class Tried:
    """What became of the inputs so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ends: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.failures: list[str] = []
        self.grown_mib = 0.0

    def take(self, raw: bytes) -> None:
        """Reads one file as ``submit grid`` and ``plan`` do."""
        self._path.write_bytes(raw)
        _CLEAR.write_text("5")  # resets the high-water mark: what hypothesis collects over the thousands is not the input's
        before, begun = _mib("VmRSS"), time.process_time()
        try:
            grid = load_grid(str(self._path))
            self.ends["grid"] += count_points(grid) >= 0
        except SparsefleetError as error:
            self.ends[f"exit {error.exit_code}"] += 1
            if "Traceback" in str(error) or "\x1b" in str(error):
                self.failures.append(repr(raw[:200]))
        except Exception:  # noqa: BLE001  that is what is looked for
            self.ends["traceback"] += 1
            self.failures.append(f"{raw[:300]!r}\n{traceback.format_exc()[-1500:]}")
        self.slowest_s = max(self.slowest_s, time.process_time() - begun)
        self.grown_mib = max(self.grown_mib, _mib("VmHWM") - before)


def _mib(what: str) -> float:
    lines = (_SELF / "status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


def changed(data: Any, rng: random.Random, draw: Callable[[], Any]) -> Any:
    """A deep copy with one to four places changed: another value, a key renamed, gone, doubled or moved."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(data))
        if not places:
            return draw()
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind <= 1:
            holder[key] = draw()
        elif kind == 2 and isinstance(holder, dict):
            holder[str(draw())[:30] if rng.random() < 0.5 else _slip(str(key), rng)] = holder.pop(key)
        elif kind == 3:
            del holder[key]
        elif kind == 4:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place] if isinstance(other, dict) or place < len(other) else None)
        elif isinstance(holder, list):
            holder.extend([holder[key]] * rng.choice((1, 3, 200)))
        else:
            holder[key] = [holder[key]]
    return data


def _places(value: Any) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _slip(word: str, rng: random.Random) -> str:
    at = rng.randrange(len(word) + 1)
    return word[:at] + rng.choice("abcxyz-_.") + word[at + rng.randrange(2) :]


def figures(run: Run) -> list[Figure]:
    """Tracebacks, the slowest and the largest of random grids and of random bytes."""
    try:
        from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
    except ImportError as error:
        raise NotRun("hypothesis is not installed: pip install sparsefleet[test]") from error
    shipped = [parse(path.read_text(), path.name).data for path in sorted(SHIPPED.glob("*.yaml"))]
    words = sorted({key for data in shipped for holder, key in _places(data) if isinstance(holder, dict)})
    scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12), st.sampled_from(words))
    values = st.recursive(scalars, lambda s: st.one_of(st.lists(s, max_size=4), st.dictionaries(st.sampled_from(words), s, max_size=3)))
    rounds = settings(
        max_examples=run.pick(5000, 200), deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    keep_catalog()
    import_module("torch")  # once: a plugin's own validator needs it, and that second is not the input's
    with tempfile.TemporaryDirectory(prefix="sparsefleet-fuzz-") as folder:
        load_grid("quickstart")
        grids, texts = Tried(Path(folder) / "grid.yaml"), Tried(Path(folder) / "bytes.yaml")

        @rounds
        @seed(1)
        @given(st.sampled_from(shipped), st.randoms(use_true_random=False), st.data())
        def structured(data: Any, rng: random.Random, more: Any) -> None:
            grids.take(
                json.dumps(changed(data, rng, lambda: more.draw(values)), ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace")
            )

        @rounds
        @seed(2)
        @given(
            st.one_of(st.binary(max_size=400), st.lists(st.sampled_from(_TOKENS.split(b" ")), max_size=60).map(b" ".join)), st.booleans()
        )
        def random_bytes(raw: bytes, after: bool) -> None:
            texts.take((SHIPPED / "quickstart.yaml").read_bytes() + raw if after else raw)

        structured()
        random_bytes()
    run.keep({"grids": {"ends": grids.ends, "failures": grids.failures[:5]}, "bytes": {"ends": texts.ends, "failures": texts.failures[:5]}})
    found = []
    for what, tried in (("grids", grids), ("byte strings", texts)):
        note = ", ".join(f"{n} {end}" for end, n in sorted(tried.ends.items()))
        found += [
            Figure(f"tracebacks of random {what}", "inputs", len(tried.failures), target=0, at_least=False, note=run.note(note)),
            Figure(f"slowest of random {what}, processor time", "s", tried.slowest_s, target=_SECONDS, at_least=False),
            Figure(f"memory that random {what} took", "MiB", tried.grown_mib, target=_MIB, at_least=False),
        ]
    return found
