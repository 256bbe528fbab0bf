"""What a checkpoint holds of a training, and how a training takes it up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsefleet.trial.checkpoint import Checkpoint

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training


def snapshot(training: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a training between two steps."""
    tensors = {f"net/{key}": value for key, value in training.network.module.state_dict().items()}
    for name, module in training.network.sparse.items():
        tensors[f"sites/{name}"] = module.flat_sites()
        tensors |= {f"state/{name}/{key}": value for key, value in module.method_state.items()}
        tensors |= {f"dense/{name}/{key}": value for key, value in module.dense_state.items()}
        tensors |= {f"memory/{name}/{key}": value for key, value in module.method_memory.items()}
    for name, parameter in training.network.module.named_parameters():
        slots = training.optimizer.state.get(parameter, {})
        tensors |= {f"slot/{name}/{key}": value for key, value in slots.items() if isinstance(value, Tensor)}
    explored = training.watch.settled()
    if explored is not None:
        tensors |= {f"explored/{name}": value for name, value in explored.state().items()}
    tensors["rng/torch"] = torch.get_rng_state()
    if training.request.device != "cpu":
        tensors["rng/device"] = torch.cuda.get_rng_state(training.request.device)
    facts = {
        "trial_key": training.request.trial_key,
        "step": training.step,
        "best_on_val": training.best_on_val,
        "last_on_val": training.last_on_val,
        "test": training.test,
        "test_evals": training.test_evals,
        "before_fine_tuning": training.before_fine_tuning,
        "converted": training.converted,
        "log": training.log.to_json(),
    }
    return tensors, facts


def restore(training: Training, checkpoint: Checkpoint) -> None:
    """Puts ``training`` where ``checkpoint`` was taken; its network must have been built with the checkpoint's sites."""
    facts = checkpoint.facts
    training.network.module.load_state_dict(checkpoint.group("net"))
    for name, module in training.network.sparse.items():
        device = module.weight_parameter.device
        module.method_state = {key: value.to(device) for key, value in checkpoint.group(f"state/{name}").items()}
        module.dense_state.update({key: value.to(device) for key, value in checkpoint.group(f"dense/{name}").items()})
        module.method_memory = checkpoint.group(f"memory/{name}")
    for name, parameter in training.network.module.named_parameters():
        slots = checkpoint.group(f"slot/{name}")
        if slots:
            fused = training.optimizer.defaults.get("fused")  # then a step is counted where the parameter lies
            training.optimizer.state[parameter] = {
                key: slot.to(parameter.device) if slot.dim() or fused else slot for key, slot in slots.items()
            }
    if training.watch.explored is not None:
        training.watch.explored.load(checkpoint.group("explored"))
    torch.set_rng_state(checkpoint.tensors["rng/torch"])
    if "rng/device" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["rng/device"], training.request.device)
    training.step = facts["step"]
    training.best_on_val, training.last_on_val = facts["best_on_val"], facts["last_on_val"]
    training.test, training.test_evals = tuple(facts["test"]) if facts["test"] else None, facts["test_evals"]
    training.before_fine_tuning = facts["before_fine_tuning"]
    training.log.restore(facts["log"])
