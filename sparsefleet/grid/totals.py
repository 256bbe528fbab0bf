"""How many trials, twins, control arms and skips a grid has: exactly, by one of two ways that agree.

Small grids are expanded. Large ones are counted as ``counting`` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import prod

from sparsefleet.grid.arms import MASK_ARMS, Judge, Verdict, has_mask_arm
from sparsefleet.grid.budgets import budget_difference
from sparsefleet.grid.counting import Cell, Factor, TooTangled, classes_of, combinations_of, factors_of, ordered
from sparsefleet.grid.expand import compose, lenient, points_of, stands, trials_of
from sparsefleet.grid.fit import memory_of, widest_of
from sparsefleet.grid.model import Choice, Grid, default_layer
from sparsefleet.grid.need import Need, most
from sparsefleet.grid.realised import holds_units
from sparsefleet.grid.selecting import candidates, first_candidate, picks_of
from sparsefleet.grid.settings import Path, State, Unplaced, value_at
from sparsefleet.trial.spec import canonical_json

Image = Callable[[State], State]


@dataclass
class Totals:
    """Exact counts.

    Attributes:
        points: what the grid names, seeds included, before skips.
        own: different trials among the points that can run.
        twins: dense twins that no point names.
        controls: control-arm trials that no point names, by arm.
        skipped: points that cannot run, by reason.
        infeasible: points whose dense twin cannot be trained, by reason.
        no_rival: points beside which no small-dense can stand, by reason.
        budgets: how twins differ from their trials.
        memory: what the largest trial of each kind takes, by (arm, layer, widest layer).
        memory_bound: what no trial exceeds, where the kinds are not told apart.
    """

    points: int = 0
    own: int = 0
    twins: int = 0
    controls: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    infeasible: Counter[str] = field(default_factory=Counter)
    no_rival: Counter[str] = field(default_factory=Counter)
    budgets: Counter[str] = field(default_factory=Counter)
    memory: dict[tuple[str, str, int], Need] = field(default_factory=dict)
    memory_bound: float | None = None

    @property
    def trials(self) -> int:
        """Everything there is to run."""
        return self.own + self.twins + self.controls.total()

    @property
    def repeated(self) -> int:
        """Points that are the same trial as another point."""
        return self.points - self.skipped.total() - self.own


def _note(totals: Totals, judge: Judge, verdict: Verdict, n: int) -> None:
    no_rival = judge.no_small_dense(verdict.state) if verdict.kind in ("sparse", "static") else None
    if no_rival and "small-dense" in judge.grid.control_arms:
        totals.no_rival[no_rival] += n
    _note_memory(totals, judge, verdict)
    if verdict.infeasible:
        totals.infeasible[verdict.infeasible] += n
    elif verdict.kind != "dense":
        difference = budget_difference(judge.twin(verdict.state), verdict.state)
        if difference:
            totals.budgets[difference] += n


def _note_memory(totals: Totals, judge: Judge, verdict: Verdict) -> None:
    state, arms = verdict.state, judge.grid.control_arms
    acts = verdict.kind in ("sparse", "static")
    there = [("dense" if verdict.kind == "dense" else "sparse" if acts else "active", state)]
    if verdict.kind != "dense" and not verdict.infeasible:
        there.append(("dense", judge.twin(state)))
    if acts and "random-static" in arms:
        there.append(("random-static", judge.random_static(state)))
    if acts and "small-dense" in arms and not judge.no_small_dense(state):
        there.append(("small-dense", judge.small_dense(state)))
    for arm, one in there:
        takes, widest = memory_of(first_candidate(one), judge.facts), widest_of(one, judge.facts)
        if takes is not None and widest is not None:
            key = (arm, next(iter(one["layer"])), widest)
            totals.memory[key] = max(takes, totals.memory.get(key, takes), key=lambda need: need.total)


def expanded(grid: Grid, judge: Judge) -> Totals:
    """The totals by expanding every point."""
    totals = Totals()
    named: set[str] = set()
    added: dict[str, str] = {}
    for state, seeds in points_of(grid):
        totals.points += len(seeds)
        if isinstance(state, str):
            totals.skipped[state] += len(seeds)
            continue
        verdicts = [judge.judge(candidate) for candidate in candidates(state)]
        totals.points += len(seeds) * (len(verdicts) - 1)
        for verdict in verdicts:
            if verdict.kind == "skip":
                totals.skipped[verdict.reason] += len(seeds)
            else:
                _note(totals, judge, verdict, len(seeds))
                totals.points += len(seeds) * (n_levels(verdict.state) - 1)
        for point in trials_of(judge, [verdict for verdict in verdicts if verdict.kind != "skip"], seeds):
            if point.added:
                added[point.spec.spec_id] = point.arm
            else:
                named.add(point.spec.spec_id)
    arms = Counter(arm for spec_id, arm in added.items() if spec_id not in named)
    totals.own, totals.twins = len(named), arms.pop("dense", 0)
    totals.controls = arms
    return totals


def n_levels(state: State) -> int:
    """Trials of one point: the levels of a lottery, or one."""
    lottery = (state.get("method") or {}).get("lottery")
    return lottery["levels"] if lottery else 1


@dataclass
class _Distinct:
    """The different images of some combinations of classes.

    Attributes:
        blocks: per factor, value → block; a block is the set of values that occur in the same classes.
        sizes: per factor, values of each block.
        tuples: the combinations of blocks that occur.
        rest: what no factor writes.
    """

    blocks: list[dict[str, int]]
    sizes: list[list[int]]
    tuples: set[tuple[int, ...]]
    rest: str

    def __len__(self) -> int:
        return sum(prod(sizes[b] for sizes, b in zip(self.sizes, blocks, strict=True)) for blocks in self.tuples)


class Counted:
    """The totals of a large grid, without expanding it."""

    def __init__(self, grid: Grid, judge: Judge) -> None:
        self.factors: list[Factor] = factors_of(grid) if grid.has_product else []
        self.open_base = grid.base
        self.grid, self.judge = replace(grid, base=first_candidate(grid.base)), judge
        self._tight = self._is_tight()
        self._apart_below = 1.0 if self._tight else self._held_below()
        self.classes = [classes_of(grid, factor, self._features, _matters) for factor in self.factors]
        self.verdicts: dict[tuple[int, ...], Verdict] = {}
        self.totals = Totals()

    def _features(self, state: State) -> State:
        """What decides whether and as what a state runs; everything else is not looked at when classes are made."""
        ((kind, parameters),) = state["optimizer"].items() if "optimizer" in state else [("", {})]
        return {
            **{key: state.get(key) for key in ("dataset", "model", "layer", "activation", "connectivity", "method")},
            "density": state["density"] if state["density"] < self._apart_below else state["density"] == 1,
            "optimizer": {"kind": kind, "momentum": parameters.get("momentum", 0) > 0, kind: {"momentum": parameters.get("momentum", 0)}},
            "train": {
                "epochs": "epochs" in state["train"],
                "lr_schedule": next(iter(state["train"]["lr_schedule"])),
                **{key: state["train"][key] for key in ("batch_size", "precision") if self._tight},
            },
            "resources": {"gpus": state["resources"]["gpus"] > 0},
        }

    def _is_tight(self) -> bool:
        """Whether anything in the grid could fail to fit into memory; if not, density and batch size need not be told apart."""
        wide = [f for f in self.factors if any(path[0] in ("model", "dataset") or path[-1] == "batch_size" for path in f.paths)]
        states = [self.grid.base, *(lenient(self.grid.base, cell) for factor in wide for cell in factor.cells)]
        models = {canonical_json(s["model"]): s["model"] for s in states if "model" in s}
        datasets = {canonical_json(s["dataset"]): s["dataset"] for s in states if "dataset" in s}
        chains = [self.judge.facts.chain({"model": m, "dataset": d}) for m in models.values() for d in datasets.values()]
        batch = max(s["train"]["batch_size"] for s in states)
        bounds = [most(chain, batch) for chain in chains if chain is not None]
        self.bound = max(bounds) if bounds and not any(s["resources"]["gpus"] > 0 for s in states) else None
        return any(bound > self.judge.facts.memory for bound in bounds)

    def _held_below(self) -> float:
        """Below which densities are told apart: a layer could not hold them, given connections not have them, a rewirer not
        start from them, or a layer be left without any."""
        facts, states = self.judge.facts, [self.grid.base, *(lenient(self.grid.base, cell) for f in self.factors for cell in f.cells)]
        if any(facts.of("connectivity", state.get("connectivity")).get("settled_by") for state in states):
            return 1.0
        if any(facts.of("rewirer", (state.get("method") or {}).get("rewirer")).get("starts_denser") for state in states):
            return 1.0
        if any(holds_units(facts.of("layer", state.get("layer"))) for state in states):
            return 1.0
        chains = [facts.chain(state) for state in states if "model" in state and "dataset" in state]
        return max((len(chain.widths) / chain.n_weights for chain in chains if chain), default=0.0)

    def count(self) -> Totals:
        """The totals.

        Raises:
            TooTangled: it cannot be done without expanding.
        """
        totals = self.totals
        n_seeds = len(self.grid.seeds)
        for numbers in combinations_of(self.classes) if self.grid.has_product else ():
            n = prod(len(of_factor[k]) for of_factor, k in zip(self.classes, numbers, strict=True)) * n_seeds
            choices = self._choices(numbers)
            if not stands(self.grid, lenient(self.grid.base, choices), choices):
                continue
            totals.points += n
            verdict = self._verdict(choices)
            if verdict.kind == "skip":
                totals.skipped[verdict.reason] += n
                continue
            if n_levels(verdict.state) > 1:
                raise TooTangled("a lottery has trials at other densities than the grid's")
            _note(totals, self.judge, verdict, n)
            self.verdicts[numbers] = verdict
        self._arms()
        if not self._tight:  # trials of different densities were not told apart
            totals.memory, totals.memory_bound = {}, self.bound
        return totals

    def _choices(self, numbers: Sequence[int]) -> tuple[Choice, ...]:
        return ordered(self.grid, self.factors, [of_factor[k][0] for of_factor, k in zip(self.classes, numbers, strict=True)])

    def _resolved(self, numbers: tuple[int, ...], f: int) -> Callable[[Cell], State]:
        """States of one combination of classes, as ``judge`` resolves them, by the cell of factor ``f``."""
        cells = [of_factor[k][0] for of_factor, k in zip(self.classes, numbers, strict=True)]
        others = compose(self.grid.base, [choice for n, cell in enumerate(cells) for choice in cell if n != f])
        acts = self.verdicts[numbers].kind in ("sparse", "static")

        def resolved(cell: Cell) -> State:
            state = compose(others, cell)
            state["layer"] = state.get("layer") or self.judge.facts.plain("layer", default_layer(state))
            return state if acts else {key: value for key, value in state.items() if key != "method"}

        return resolved

    def _verdict(self, choices: Sequence[Choice]) -> Verdict:
        try:
            return self.judge.judge(compose(self.grid.base, choices))
        except Unplaced as error:
            return Verdict("skip", {}, str(error), mistake=True)

    def _arms(self) -> None:
        judge, totals = self.judge, self.totals
        beside = self._beside()
        wanted = self.grid.control_arms
        acting = ("sparse", "static")
        dense = self._union(judge.twin, ("dense",), beside)
        totals.own = self._union(_trial, acting, beside) + self._union(_trial, ("active",), beside) + dense
        totals.twins = self._union(judge.twin, ("dense", "sparse", "static", "active"), beside, lambda v: not v.infeasible) - dense
        if "random-static" in wanted:
            static = self._union(lambda s: _trial(judge.random_static(s)), acting, beside)
            totals.controls["random-static"] = static - self._union(_trial, ("static",), beside)
        if "small-dense" in wanted:
            totals.controls["small-dense"] = self._union(self._small_dense, acting, beside, lambda v: not judge.no_small_dense(v.state))
        for arm in (one for one in MASK_ARMS if one in wanted):  # each belongs to one trial
            totals.controls[arm] = self._union(_trial, ("sparse",), beside, partial(_has_arm, arm))
        totals.controls = +totals.controls

    def _beside(self) -> list[tuple[Verdict, Sequence[int]]]:
        found = []
        for entry in self.grid.include:
            for picks in picks_of(lenient(self.open_base, [Choice(entry.sets)])):
                self.totals.points += len(entry.seeds)
                verdict = self._verdict([Choice(entry.sets, picks=picks)])
                if verdict.kind == "skip":
                    self.totals.skipped[verdict.reason] += len(entry.seeds)
                else:
                    _note(self.totals, self.judge, verdict, len(entry.seeds))
                    found.append((verdict, entry.seeds))
        return found

    def _small_dense(self, state: State) -> State:
        """The arm's state, its density at the place where the factors look for it."""
        small = self.judge.small_dense(state)
        return {**{key: value for key, value in small.items() if key != "narrow_to_density"}, "density": state["density"]}

    def _union(
        self,
        image: Image,
        kinds: Sequence[str],
        beside: Sequence[tuple[Verdict, Sequence[int]]],
        where: Callable[[Verdict], bool] = lambda _: True,
    ) -> int:
        """How many different images the points of these kinds have, seeds and the candidates of the ``dense:`` block included."""

        def counts(verdict: Verdict) -> bool:
            return verdict.kind in kinds and where(verdict)

        def plain(state: State) -> State:
            return _trial(image(state))

        combos = [numbers for numbers, verdict in self.verdicts.items() if counts(verdict)]
        distinct = self._distinct(plain, combos)
        total = len(distinct) * len(self.grid.seeds)
        others: dict[str, list[Sequence[int]]] = {}
        for verdict, seeds in beside:
            if counts(verdict):
                state = plain(verdict.state)
                known = others.setdefault(canonical_json(state), [])
                if not known and self._inside(distinct, state):
                    known.append(self.grid.seeds)
                    total -= len(self.grid.seeds)  # counted again below, together with the seeds beside
                known.append(seeds)
        total += sum(_n_seeds(lists) for lists in others.values())
        samples = [self.verdicts[numbers] for numbers in combos[:1]] + [verdict for verdict, _ in beside if counts(verdict)][:1]
        return total * (len(picks_of(image(samples[0].state))) if samples else 1)

    def _distinct(self, image: Image, combos: Sequence[tuple[int, ...]]) -> _Distinct:
        blocks: list[dict[str, int]] = []
        of_class: list[dict[int, list[int]]] = []
        sizes: list[list[int]] = []
        for f, factor in enumerate(self.factors):
            where: dict[str, set[int]] = {}
            for k, sample in {numbers[f]: numbers for numbers in combos}.items():
                resolved = self._resolved(sample, f)
                for cell in self.classes[f][k]:
                    where.setdefault(_at(image(resolved(cell)), factor.paths), set()).add(k)
            ids: dict[frozenset[int], int] = {}
            blocks.append({value: ids.setdefault(frozenset(ks), len(ids)) for value, ks in where.items()})
            counted = Counter(blocks[-1].values())
            sizes.append([counted[b] for b in range(len(ids))])
            of_class.append({k: [b for ks, b in ids.items() if k in ks] for k in {k for ks in ids for k in ks}})
        tuples = {t for numbers in combos for t in product(*(of_class[f][k] for f, k in enumerate(numbers)))}
        rest = self._rest(image(self.verdicts[combos[0]].state)) if combos else ""
        return _Distinct(blocks, sizes, tuples, rest)

    def _rest(self, state: State) -> str:
        for factor in self.factors:
            for path in factor.paths:
                state = _without(state, path)
        return canonical_json(state)

    def _inside(self, distinct: _Distinct, state: State) -> bool:
        if self._rest(state) != distinct.rest:
            return False
        blocks = [of_factor.get(_at(state, factor.paths)) for of_factor, factor in zip(distinct.blocks, self.factors, strict=True)]
        return None not in blocks and tuple(blocks) in distinct.tuples


def _has_arm(arm: str, verdict: Verdict) -> bool:
    return has_mask_arm(arm, verdict.state)


def _trial(state: State) -> State:
    """What the spec sees of a state."""
    return {**state, "resources": {}, "limits": {}}


def _at(state: State, paths: Sequence[Path]) -> str:
    values = [value_at(state, path) for path in paths]
    return repr(values[0]) if len(values) == 1 and isinstance(values[0], float) else canonical_json(values)


def _matters(path: Path) -> bool:
    """Whether ``_features`` looks at a place."""
    if path[0] == "train":
        return path[1] in ("epochs", "lr_schedule", "batch_size", "precision")
    return path[0] not in ("init", "validation", "limits") and not (path[0] == "optimizer" and path[-1] == "lr")


def _without(state: State, path: Path) -> State:
    if path[0] not in state:
        return state
    inner = state[path[0]]
    if len(path) == 1 or not isinstance(inner, dict):
        return {key: value for key, value in state.items() if key != path[0]}
    return {**state, path[0]: _without(inner, path[1:])}


def _n_seeds(lists: Sequence[Sequence[int]]) -> int:
    """Different seeds of all the lists; only short ones are made into sets."""
    longest = max(lists, key=len)
    others = {
        seed for seeds in lists if seeds is not longest and not (isinstance(seeds, range) and isinstance(longest, range)) for seed in seeds
    }
    return len(longest) + sum(seed not in longest for seed in others)
