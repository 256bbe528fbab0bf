"""What one state of a grid asks for, and the arms that stand beside it: the dense twin and the control arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsefleet.grid.choosing import chosen_layer
from sparsefleet.grid.criteria import criterion_misfit
from sparsefleet.grid.fit import Facts, dense_need, unfit
from sparsefleet.grid.model import Grid, default_layer
from sparsefleet.grid.realised import given_misfit, is_settled, too_thin
from sparsefleet.grid.selecting import first_candidate
from sparsefleet.grid.settings import PLAIN_METHOD, REQUIRED, State, Unplaced, assign, method_of, plugin_ref, tagged
from sparsefleet.trial.spec import Method, Start, TrialSpec, canonical_json

Kind = Literal["sparse", "static", "active", "dense", "skip"]
MASK_ARMS = ("shuffled-mask", "reinit-mask")
"""Control arms that train the connections of a finished trial."""
_STATIC, _DENSE, _MASKED, _RELU = "static", "dense", "masked", "relu"


@dataclass(frozen=True)
class Verdict:
    """What a state is.

    Attributes:
        kind: ``sparse`` (a method acts), ``static`` (random-static), ``active`` (dense weights, sparse activation), ``dense`` (its own twin), ``skip``.
        state: resolved: layer given, no method where none acts.
        reason: why it is skipped.
        mistake: the file contradicts itself, as opposed to what a machine or plugin cannot do.
        infeasible: why the dense twin cannot be trained; a value, not an error.
        key: the base key that a mistake is looked for at, where no axis is to blame.
    """

    kind: Kind
    state: State
    reason: str = ""
    mistake: bool = False
    infeasible: str | None = None
    key: str = "density"


class Judge:
    """Judges states of one grid."""

    def __init__(self, grid: Grid, facts: Facts) -> None:
        self.grid = grid
        self.facts = facts
        self._given: dict[str, str | None] = {}

    def judge(self, state: State) -> Verdict:
        """What ``state`` is, with every default resolved."""
        missing = [key for key in REQUIRED if key not in state] + (["train.epochs"] if "epochs" not in state.get("train", {}) else [])
        if missing:
            return Verdict("skip", state, f"{missing[0]} is missing here", mistake=True)
        state = {**state, "layer": state.get("layer") or self.facts.plain("layer", default_layer(state))}
        layer, density, method = next(iter(state["layer"])), state["density"], state.get("method")
        stores_all = self.facts.of("layer", state["layer"]).get("topology") == "all"
        if density < 1 and not method:
            return Verdict("skip", state, "a density below 1 needs a method: a pruner or a rewirer", mistake=True)
        if density == 1 and method and not stores_all:
            return Verdict(
                "skip", state, f"density 1 on layer={layer} leaves nothing to prune or rewire; the dense twin has layer=dense", mistake=True
            )
        if density < 1:
            return self._sparse(state)
        state = {key: value for key, value in state.items() if key != "method"}
        active = bool(self.facts.of("activation", state["activation"]).get("sparse")) or not stores_all
        try:
            twin = self.twin(state)
        except Unplaced as error:
            return Verdict("skip", state, str(error), mistake=True)
        need = dense_need(state if active else first_candidate(twin), self.facts)
        if need:
            return Verdict("skip", state, f"layer={layer} at {self._width(state)}: {need}")
        return Verdict("active", state) if active else Verdict("dense", twin)

    def _sparse(self, state: State) -> Verdict:
        try:
            method_of(state["method"])
        except ValueError as error:
            return Verdict("skip", state, str(error).split("\n")[-2].strip() if "\n" in str(error) else str(error), mistake=True)
        chain = self.facts.chain(state)
        thin = too_thin(state, chain) if chain else None
        if thin:
            return Verdict("skip", state, thin, mistake=True)
        if self.facts.of("layer", state["layer"]).get("chooses"):
            chosen = chosen_layer(state, self.facts)
            if isinstance(chosen, str):
                return Verdict("skip", state, chosen)
            state = {**state, "layer": chosen}
        reason = unfit(state, self.facts)
        if reason:
            return Verdict("skip", state, reason)
        wrong = self._given_wrongly(state)
        if wrong:
            return Verdict("skip", state, wrong, mistake=True, key="connectivity")
        try:
            twin = self.twin(state)
        except Unplaced as error:
            return Verdict("skip", state, str(error), mistake=True)
        infeasible = dense_need(first_candidate(twin), self.facts)
        begins = "start: twin" if state["method"].get("start") == "twin" else "lottery" if state["method"].get("lottery") else None
        if infeasible and begins:
            return Verdict("skip", state, f"{begins}, but at {self._width(state)} the twin's {infeasible}")
        wrong = self._pruner_misfit(state)
        if wrong:
            return Verdict("skip", state, wrong, mistake=True, key="method")
        kind: Kind = "static" if _STATIC in (state["method"].get("rewirer") or {}) else "sparse"
        return Verdict(kind, state, infeasible=infeasible)

    def _pruner_misfit(self, state: State) -> str | None:
        method = state["method"]
        if not method.get("pruner"):
            return None
        wrong = criterion_misfit(state, self.facts.of("pruner", method["pruner"]), self.facts.of("dataset", state["dataset"]).get("info"))
        return wrong or self._lottery_misfit(method)

    def _lottery_misfit(self, method: State) -> str | None:
        if not method.get("lottery"):
            return None
        if method.get("start"):
            return "the first level of a lottery starts from the twin; start does not go with it"
        name = next(iter(method["pruner"]))
        if self.facts.of("pruner", method["pruner"]).get("needs_dense"):
            return f"{name} scores what it has seen in training; a lottery scores the network that the level before left"
        return None

    def _given_wrongly(self, state: State) -> str | None:
        if not is_settled(state, self.facts.of("connectivity", state.get("connectivity"))):
            return None
        parts = ("dataset", "model", "layer", "connectivity", "activation", "density", "method")
        slot = canonical_json({part: state.get(part) for part in parts})
        if slot not in self._given:
            self._given[slot] = given_misfit(spec_of(state), self.facts.catalog)
        return self._given[slot]

    def _width(self, state: State) -> str:
        chain = self.facts.chain(state)
        return f"width {chain.widest:,}" if chain else "this width"

    def twin(self, state: State) -> State:
        """The state of the dense twin: no sparsity, relu for a sparse activation, and the grid's ``dense:`` block, its selections open.

        Raises:
            Unplaced: the ``dense:`` block names a parameter of an optimizer that does not stand here.
        """
        twin = {key: value for key, value in state.items() if key != "method"}
        twin.update(density=1.0, layer=self.facts.plain("layer", _DENSE), connectivity=self.facts.plain("connectivity", "random"))
        if self.facts.of("activation", state["activation"]).get("sparse"):
            twin["activation"] = self.facts.plain("activation", _RELU)
        for assignment in sorted(self.grid.dense, key=lambda a: len(a.path)):
            twin = assign(twin, assignment)
        return twin

    def random_static(self, state: State) -> State:
        """The control arm with the same density, distribution and layer, and a topology that never changes; itself if it is one.

        A layer that whole units leave has them leave at random before the first step.
        """
        method = state["method"]
        if _STATIC in (method.get("rewirer") or {}):
            return state
        kept = {key: method[key] for key in ("distribution", "keep_dense", "pattern") if key in method}
        if kept.get("distribution") == "global":  # needs scores, which a drawn topology has none of
            kept["distribution"] = "uniform"
        if self.facts.of("layer", state["layer"]).get("narrows"):
            return {**state, "method": {**PLAIN_METHOD, "pruner": self.facts.plain("pruner", "random"), **kept}}
        return {**state, "method": {**PLAIN_METHOD, "rewirer": self.facts.plain("rewirer", _STATIC), **kept}}

    def mask_arm(self, arm: str, spec: TrialSpec, row: str) -> TrialSpec:
        """The control arm that trains the connections of ``spec`` from new weights, or as many at random sites.

        Args:
            row: the spec_id that ``spec`` has with seed 0.
        """
        distribution = "uniform" if spec.method.distribution == "global" else spec.method.distribution
        static = plugin_ref(self.facts.plain("rewirer", _STATIC))
        return spec.model_copy(
            update={
                "method": Method(rewirer=static, distribution=distribution, keep_dense=spec.method.keep_dense),
                "connectivity": plugin_ref(self.facts.plain("connectivity", "random")),
                "start": Start(trial=spec.spec_id, row=row, gives="shuffled-mask" if arm == "shuffled-mask" else "mask"),
                "init": spec.init.model_copy(update={"draw": spec.init.draw + 1}) if arm == "reinit-mask" else spec.init,
            }
        )

    def no_small_dense(self, state: State) -> str | None:
        """Why the model has no narrower form, or None if it has one."""
        narrows = self.facts.of("model", state["model"]).get("narrows", True)
        return None if narrows else f"model {next(iter(state['model']))} cannot be narrowed"

    def small_dense(self, state: State) -> State:
        """The twin, narrowed to the parameters it would have at the trial's density; layers that the trial keeps dense count as dense."""
        kept = state["method"].get("keep_dense")
        method = {"method": {**PLAIN_METHOD, "keep_dense": kept}} if kept else {}
        return {**self.twin(state), **method, "narrow_to_density": state["density"]}


def has_mask_arm(arm: str, state: State) -> bool:
    """Whether the arm can stand beside a state: shuffling its connections would leave a pattern."""
    return arm != "shuffled-mask" or next(iter(state["method"].get("pattern") or {"unstructured": {}})) == "unstructured"


def spec_of(state: State, seed: int = 0) -> TrialSpec:
    """The trial of a resolved state, without what it starts from."""
    return TrialSpec.model_validate(
        {
            **{family: plugin_ref(state[family]) for family in ("dataset", "model", "layer", "connectivity", "activation")},
            "method": method_of(state.get("method")),
            "density": state["density"],
            "narrow_to_density": state.get("narrow_to_density"),
            "optimizer": tagged(state["optimizer"]),
            "train": {**state["train"], "lr_schedule": tagged(state["train"]["lr_schedule"])},
            "init": state["init"],
            "validation": state["validation"],
            "seed": seed,
        }
    )
