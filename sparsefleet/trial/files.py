"""Names of the files that a trial leaves in its work folder, once. Imports nothing."""

from __future__ import annotations

MODEL = "model.safetensors"
MASKS = "masks.safetensors"
MANIFEST = "manifest.json"
SPEC = "spec.json"
ENVIRONMENT = "environment.json"
RECORD = "record.json"
MASK_STEPS = "mask-steps"


def picture_name(layer: str, step: int) -> str:
    """``mask-steps/LAYER-STEP.png``, the artifact name of one mask picture."""
    return f"{MASK_STEPS}/{layer}-{step}.png"


def parse_picture_name(name: str) -> tuple[str, int] | None:
    """Layer and step of a mask picture, or None if ``name`` is not one."""
    folder, _, file = name.rpartition("/")
    layer, _, step = file.removesuffix(".png").rpartition("-")
    if folder != MASK_STEPS or not file.endswith(".png") or not layer or not step.isdecimal():
        return None
    return layer, int(step)


def step_masks_name(step: int) -> str:
    """``mask-steps/STEP.safetensors``, the artifact name of the connections at one step."""
    return f"{MASK_STEPS}/{step}.safetensors"


def parse_step_masks_name(name: str) -> int | None:
    """The step of a file of connections, or None if ``name`` is not one."""
    folder, _, file = name.rpartition("/")
    step, _, kind = file.rpartition(".")
    return int(step) if folder == MASK_STEPS and kind == "safetensors" and step.isdecimal() else None
