"""What pictures of one trial are drawn from: its record, its mask artifact, the connections over the steps, and its trained weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsefleet.trial import files
from sparsefleet.trial.outside import own_file, read_record, read_spec

if TYPE_CHECKING:
    from torch import Tensor

    from sparsefleet.trial.masks import LayerMask

MOST_MODEL_BYTES = 256 << 20
"""A larger model.safetensors is not loaded: the pictures of weights are left out."""


class LayerWeights(NamedTuple):
    """The trained weights of one prunable layer.

    Attributes:
        shape: of the weight, kernel included.
        flat: ``(nnz,)`` int64 positions of its connections; None where all sites are.
        values: ``(nnz,)`` their weights.
    """

    shape: tuple[int, ...]
    flat: Tensor | None
    values: Tensor

    @property
    def n_sites(self) -> int:
        """Possible connections."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Kept share."""
        return self.values.numel() / self.n_sites


@dataclass
class TrialData:
    """A trial's files, read when a picture asks for them.

    Attributes:
        folder: where they lie, with the names of ``sparsefleet.trial.files``.
        label: what the trial is called in titles.
    """

    folder: Path
    spec: Mapping[str, Any]
    record: Mapping[str, Any]
    label: str = field(default="")

    @property
    def spec_id(self) -> str:
        """What people call it."""
        return str(self.record["spec_id"])

    @cached_property
    def masks(self) -> dict[str, LayerMask]:
        """The final connections of every sparse layer; empty for a dense trial."""
        from sparsefleet.trial.masks import load_masks

        if not (self.folder / files.MANIFEST).exists():
            return {}
        for name in (files.MANIFEST, files.MASKS):
            own_file(self.folder / name, self.folder)
        return load_masks(self.folder)

    @cached_property
    def steps(self) -> dict[int, dict[str, LayerMask]]:
        """The connections by step, ascending, of those layers that were small enough to be kept."""
        from sparsefleet.trial.masks import read_step

        found = (read_step(own_file(path, self.folder)) for path in (self.folder / files.MASK_STEPS).glob("*.safetensors"))
        return dict(sorted(found))

    @cached_property
    def weights(self) -> dict[str, LayerWeights]:
        """The trained weights of every prunable layer, input to output; empty where the model is not there or too large."""
        path = self.folder / files.MODEL
        if not path.exists() or own_file(path, self.folder).stat().st_size > MOST_MODEL_BYTES:
            return {}
        from sparsefleet.trial.build import load_network
        from sparsefleet.trial.spec import TrialSpec

        spec = TrialSpec.model_validate(self.spec)
        network = load_network(spec, path, self.folder if self.masks else None)
        found = {}
        for name in network.prunable:
            module: Any = network.module.get_submodule(name)
            if name in network.sparse:
                found[name] = LayerWeights(tuple(network.shapes[name]), module.flat_sites(), module.values())
            elif hasattr(module, "weight"):
                found[name] = LayerWeights(tuple(module.weight.shape), None, module.weight.detach().reshape(-1))
        return found


def read_trial(folder: Path, label: str = "") -> TrialData:
    """The trial whose files lie in ``folder``.

    Raises:
        UserError: there is no record or no spec, or they are something else.
    """
    from sparsefleet.errors import UserError

    missing = [name for name in (files.SPEC, files.RECORD) if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder} holds no finished trial",
            cause=f"{' and '.join(missing)} not there",
            fix=f"a folder with {files.SPEC} and {files.RECORD}",
        )
    spec, record = read_spec(folder / files.SPEC, folder), read_record(folder / files.RECORD, folder)
    return TrialData(folder, spec, record, label)
