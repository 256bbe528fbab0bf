"""What must not be lost where a module of anyone's model is replaced, and what reads a module's weight behind its back."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from sparsefleet.errors import UserError
from sparsefleet.nn.attention import MultiheadAttention
from sparsefleet.nn.module import SparseModule

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody listens to ``module``, to a part of it or to one of their parameters."""
    own = any(getattr(part, name) for part in module.modules() for name in _HOOKS)
    return own or any(getattr(parameter, name, None) for parameter in module.parameters() for name in _PARAMETER_HOOKS)


def refuse_losses(model: nn.Module, names: Collection[str], *, fix: str) -> None:
    """Ends a replacement of the modules called ``names`` that would lose something without a word.

    Args:
        fix: what to do about hooks; for sharing, it is to keep those modules dense.

    Raises:
        UserError: the model is itself such a module, or one of them shares a parameter with another module, or has hooks.
    """
    if "" in names:
        raise UserError(f"the model is itself a {type(model).__name__}, which cannot be replaced in place", fix="wrap it in nn.Sequential")
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            users.setdefault(id(parameter), []).append(name)
    for name in names:
        module = model.get_submodule(name)
        for key, parameter in module.named_parameters():
            sharers = users[id(parameter)]
            if any(each != name and not each.startswith(f"{name}.") for each in sharers):
                kept = [each for each in sharers if each in names]
                raise UserError(f"{name}.{key} is shared with another module", fix=f"keep_dense={kept}")
        if has_hooks(module):
            raise UserError(f"{name} has hooks, which its replacement would not have", fix=fix)


def leave_fast_paths(model: nn.Module) -> None:
    """Makes torch's encoder layers call their modules.

    In eval mode without gradients ``nn.TransformerEncoderLayer`` hands the weights of its modules to one fused operation, which takes dense
    ones of torch's own modules, and ``nn.TransformerEncoder`` nests its input for that operation. Both ask these attributes first.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _has_sparse(module):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and _has_sparse(module):
            module.use_nested_tensor = False


def _has_sparse(module: nn.Module) -> bool:
    return any(isinstance(part, (SparseModule, MultiheadAttention)) for part in module.modules())
