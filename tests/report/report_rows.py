"""Rows of a ledger made by hand."""

from __future__ import annotations

from typing import Any

from sparsefleet.ledger.rows import TimingRow, TrialRow


def spec(
    seed: int = 0, *, density: float = 1.0, method: dict[str, Any] | None = None, layer: str = "dense", **changes: Any
) -> dict[str, Any]:
    """A spec as JSON, every default spelled out."""
    from sparsefleet.trial.spec import TrialSpec

    body = {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "params": {"hidden": [512]}},
        "layer": {"name": layer},
        "density": density,
        "method": method or {},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "train": {"epochs": 2, "batch_size": 64},
        "seed": seed,
        **changes,
    }
    return TrialSpec.model_validate(body).to_json()


def record(accuracy: float | None, *, state: str = "SUCCEEDED", execution: str = "sparse_csr", density: float = 1.0) -> dict[str, Any]:
    """The parts of sf-record/1 that the report reads."""
    return {
        "schema": "sf-record/1",
        "state": state,
        "wall_s": 2.0,
        "counts": {
            "layers": [{"name": "0", "shape": [512, 64], "execution": execution, "nnz_asked": 10, "nnz": 10, "nnz_effective": None}],
            "nnz_weights": round(32768 * density),
            "params": round(32768 * density) + 522,
            "resident_bytes": round(131072 * density),
            "stored_bytes": round(2048 + 131072 * density),
            "compression": 133120 / (2048 + 131072 * density),
            "density_realised": density,
        },
        "accuracy": {
            "metric": "top1",
            "test": accuracy,
            "test_loss": 0.5,
            "n_test": 360,
            "best_on_val": 0.9,
            "last_on_val": 0.9,
            "chance": 0.1,
            "diverged": state == "DIVERGED",
        },
    }


def trial(key: str, accuracy: float | None, *, state: str = "SUCCEEDED", **named: Any) -> TrialRow:
    """One trial; ``spec`` is required among ``named``; ``facts`` are further fields of its record's accuracy."""
    body = named.pop("spec")
    facts = {"epochs": body["train"]["epochs"], "steps": 40, "test_evals": 1, **named.pop("facts", {})}
    execution = named.pop("execution", "dense" if named.get("arm", "dense") == "dense" else "sparse_csr")
    done = state in ("SUCCEEDED", "DIVERGED")
    body_of_record = record(accuracy, state=state, execution=execution, density=body["density"])
    body_of_record["accuracy"].update(facts)
    return TrialRow(
        ordinal=named.pop("ordinal", 0),
        key=key,
        spec_id=f"id-{key}",
        spec=body,
        arm=named.pop("arm", "dense"),
        state=state,
        record=body_of_record if done else None,
        **named,
    )


def timing(
    keys: list[str], speedup: float | None, *, op: str = "step", batch_size: int = 64, execution: str = "sparse_csr", **changes: Any
) -> TimingRow:
    """One measured configuration: the dense side takes 10 ms, small-dense as long as sparse; ``changes`` are fields of the timing."""
    factor = speedup or 1.0
    word = "NONE" if speedup is None else "FASTER" if speedup > 1.03 else "SLOWER" if speedup < 0.97 else "SAME"
    sparse = {"median": 0.010 / factor, "p10": 0.009 / factor, "p90": 0.012 / factor, "mad": 0.0001}
    body = {
        "protocol": "sf-measure/1",
        "level": "publish",
        "config_key": f"c-{keys[0]}-{op}-{batch_size}",
        "op": op,
        "batch_size": batch_size,
        "dtype": "float32",
        "device": "cpu:test",
        "threads": 1,
        "execution": execution,
        "baseline": "dense_eager",
        "baselines_tried": [{"name": "dense_eager", "median_s": 0.010, "compile_s": None, "why_not": ""}],
        "dense_s": {"median": 0.010, "p10": 0.009, "p90": 0.012, "mad": 0.0001},
        "sparse_s": sparse,
        "rival_s": {},
        "speedup": speedup,
        "ci95": [speedup * 0.98, speedup * 1.02] if speedup else None,
        "verdict": word,
        "reasons": [],
        "rival_speedup": None,
        "rival_ci95": None,
        "rival_verdict": "NONE",
        "rival_reasons": [],
        "rival_vs_dense": None,
        "rival_vs_dense_ci95": None,
        "rival_vs_dense_verdict": "NONE",
        "rival_params": None,
        "rival_note": "",
        "aa_ratio": 1.0,
        "drift": 1.0,
        "rounds": 50,
        "kept": 48,
        "dropped": {},
        "processes": 3,
        "between": 0.01,
        "warmup_s": 0.4,
        "prepare_s": 0.008,
        "breakeven_calls": None,
        "method_share": 0.0,
        "correctness": {},
        "theory": {
            "flop_ratio": 10.0,
            "bytes_ratio": 5.0,
            "roofline_speedup": 5.0,
            "realised_fraction": factor / 10,
            "fraction_of_limit": 0.1,
        },
        "memory": {},
        "samples_ref": "",
        "fingerprint": "fp:a",
        "attempt": 1,
        "note": "",
        **changes,
    }
    return TimingRow(config_key=str(body["config_key"]), keys=keys, state="SUCCEEDED", timings=[body], samples_ref=None, reason=None)


def doubted(keys: list[str], speedup: float, reason: str = "dense against dense reads 1.061", **changes: Any) -> TimingRow:
    """A timing that did not pass its gates."""
    return timing(keys, speedup, verdict="NOT_TRUSTWORTHY", reasons=[reason], **changes)


def three_seeds(
    density: float = 0.1, sparse: tuple[Any, ...] = (0.90, 0.92, 0.91), dense: tuple[float, ...] = (0.93, 0.94, 0.95)
) -> list[TrialRow]:
    """A dense twin and SET on csr, by seed; a state in place of an accuracy makes that trial end so."""
    rows = [trial(f"d{s}", dense[s], spec=spec(s), ordinal=s) for s in range(len(dense))]
    for s, value in enumerate(sparse):
        named: dict[str, Any] = {
            "spec": spec(s, density=density, method={"rewirer": {"name": "set"}}, layer="csr"),
            "arm": "sparse",
            "twin_key": f"d{s}",
            "ordinal": 10 + s,
        }
        state = value if isinstance(value, str) else "SUCCEEDED"
        rows.append(trial(f"s{density}-{s}", None if isinstance(value, str) else value, state=state, **named))
    return rows


def candidates(name: str, scores: dict[float, tuple[Any, ...]], *, tests: dict[float, tuple[float, ...]], **named: Any) -> list[TrialRow]:
    """The trials of one selection of a learning rate: validation figures (or an end) and test figures by learning rate, a seed each.

    ``twin`` and ``rival`` among ``named`` are the selections of the partners.
    """
    request = {"twin": named.pop("twin", None), "rival": named.pop("rival", None), "alone": named.pop("alone", False)}
    changes = named.pop("changes", {})
    rows = []
    for number, (lr, values) in enumerate(scores.items()):
        part = {"id": name, "candidate": number, "n": len(scores), "paths": ["optimizer.lr"]}
        for seed, value in enumerate(values):
            state = value if isinstance(value, str) else "SUCCEEDED"
            body = spec(seed, optimizer={"kind": "sgd", "lr": lr}, **changes)
            facts = {} if isinstance(value, str) else {"last_on_val": value}
            given = {"spec": body, "state": state, "facts": facts, "request": {"tuning": {"parts": [part], **request}}, **named}
            rows.append(trial(f"{name}-{lr}-{seed}", tests[lr][seed], **given))
    return rows
