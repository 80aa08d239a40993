"""Predictors by name: the embedded micro model, official SAM 2 checkpoints, and image features that runs share."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from sam2_keyframe.micro import WEIGHTS, load_micro_predictor
from sam2_keyframe.models import SIZES, find_checkpoint, load_checkpoint, read_weights, recognise


def check_model(model: str, folder: Path) -> Path | None:
    """Return the checkpoint file that a model's name stands for; None for the embedded model.

    Args:
        model: "micro", an official size, or the path of a checkpoint.
        folder: Where the official checkpoints lie.

    Raises:
        ValueError: The name is unknown, or the file holds no SAM 2.
        FileNotFoundError: The file is missing; the message says where to get it.
    """
    if model == "micro":
        return None
    if model in SIZES:
        path = find_checkpoint(model, folder)
    elif model.endswith((".pt", ".pth")):
        path = Path(model)
    else:
        raise ValueError(f"no model is called {model!r}; choose micro, {', '.join(SIZES)}, or the path of a .pt")
    recognise(read_weights(path), str(path))
    return path


def memory_slots(checkpoint: Path | None) -> int:
    """Return how many memories with a temporal code of their own a model has (`num_maskmem` - 1)."""
    if checkpoint is not None:
        return int(read_weights(checkpoint)["maskmem_tpos_enc"].shape[0]) - 1
    from safetensors import safe_open

    with safe_open(WEIGHTS, "pt") as weights:
        return int(weights.get_slice("maskmem_tpos_enc").get_shape()[0]) - 1


def fingerprint(checkpoint: Path | None) -> str:
    """Return the first 16 digits of the SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    with open(checkpoint or WEIGHTS, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()[:16]


def load_predictor(checkpoint: Path | None, device: str, image_size: int | None = None) -> Any:
    """Return a SAM 2 video predictor in evaluation mode.

    An official checkpoint's configuration is recognised by its weights. Post-processing is off, as in SAM 2's own
    evaluation (`tools/vos_inference.py`).

    Args:
        checkpoint: A file {"model": state_dict} as published; None for the embedded micro model.
        device: Where to put it.
        image_size: Side of the square the model sees; None: 256 for the micro model, 1024 for official ones.

    Raises:
        ValueError: The file is no SAM 2 or 2.1 checkpoint.
    """
    if checkpoint is None:
        return load_micro_predictor(device, image_size or 256)
    return load_checkpoint(checkpoint, device, image_size, postprocessing=False)


@contextmanager
def shared_features(predictor: Any, limit: int = 2**30) -> Iterator[None]:
    """Let runs over the same clip compute each frame's image features once.

    Features are found again by the frame's pixels, so masks stay equal to the last bit.

    Args:
        predictor: A SAM 2 video predictor; its `forward_image` is replaced on the instance until the block ends.
        limit: Most bytes held; the frames used longest ago leave first.
    """
    compute = predictor.forward_image
    held: OrderedDict[bytes, dict[str, list[Tensor]]] = OrderedDict()
    total = 0

    def forward_image(image: Tensor) -> dict[str, list[Tensor]]:
        nonlocal total
        key = hashlib.blake2b(image.detach().cpu().numpy().tobytes(), digest_size=16).digest()
        if key in held:
            held.move_to_end(key)
        else:
            held[key] = compute(image)
            total += _nbytes(held[key])
            while total > limit and len(held) > 1:
                total -= _nbytes(held.popitem(last=False)[1])
        return {name: list(value) if isinstance(value, list) else value for name, value in held[key].items()}

    before = vars(predictor).get("forward_image")
    vars(predictor)["forward_image"] = forward_image
    try:
        yield
    finally:
        if before is None:
            del vars(predictor)["forward_image"]
        else:
            vars(predictor)["forward_image"] = before


def _nbytes(features: dict[str, list[Tensor]]) -> int:
    return sum(t.nbytes for value in features.values() if isinstance(value, list) for t in value)
