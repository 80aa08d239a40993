"""Predictors by name: the embedded micro model, official SAM 2 checkpoints, and image features that runs share."""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHECKPOINTS = {
    "tiny": "sam2.1_hiera_tiny.pt",
    "small": "sam2.1_hiera_small.pt",
    "base_plus": "sam2.1_hiera_base_plus.pt",
    "large": "sam2.1_hiera_large.pt",
}
"""File names of the official SAM 2.1 checkpoints."""

DOWNLOAD = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"

_WIDTH, _DEPTH = "image_encoder.trunk.patch_embed.proj.weight", "image_encoder.trunk.blocks.{}.norm1.weight"
_CONFIGS = {(96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}


def check_model(model: str, folder: Path) -> Path | None:
    """Return the checkpoint file that a model's name stands for; None for the embedded model.

    Args:
        model: "micro", a name in `CHECKPOINTS`, or the path of a checkpoint.
        folder: Where the official checkpoints lie.

    Raises:
        ValueError: The name is unknown or the file is missing; the message says where to get it.
    """
    if model == "micro":
        return None
    if model in CHECKPOINTS:
        path = folder / CHECKPOINTS[model]
        if not path.is_file():
            raise ValueError(f"{path} is missing; download it: curl -LO --output-dir {folder} {DOWNLOAD}/{path.name}")
        return path
    if not model.endswith((".pt", ".pth")):
        raise ValueError(f"no model is called {model!r}; choose micro, {', '.join(CHECKPOINTS)}, or the path of a .pt")
    if not Path(model).is_file():
        raise ValueError(f"there is no checkpoint {model}; official ones are at {DOWNLOAD}")
    return Path(model)


def fingerprint(checkpoint: Path | None) -> str:
    """Return the first 16 digits of the SHA-256 of a model's weights."""
    from sam2_keyframe.micro import WEIGHTS

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
        from sam2_keyframe.micro import load_micro_predictor

        return load_micro_predictor(device, image_size or 256)
    from sam2.build_sam import build_sam2_video_predictor

    overrides = [f"++model.image_size={image_size}"] if image_size else []
    return build_sam2_video_predictor(
        _config(checkpoint),
        str(checkpoint),
        device=device,
        hydra_overrides_extra=overrides,
        apply_postprocessing=False,
    )


def _config(checkpoint: Path) -> str:
    try:
        return recognise(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["model"])
    except (KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{checkpoint} is no SAM 2 checkpoint ({error!r}); one is a file {{'model': state_dict}} from {DOWNLOAD}"
        ) from error


def recognise(weights: Mapping[str, Tensor]) -> str:
    """Return the name of SAM 2's configuration that weights belong to, by their width, depth and version.

    Raises:
        KeyError: They belong to none.
    """
    size = _CONFIGS[weights[_WIDTH].shape[0], sum(_DEPTH.format(i) in weights for i in range(64))]
    version = "2.1" if "no_obj_embed_spatial" in weights else "2"
    return f"configs/sam{version}/{'sam2' if version == '2' else 'sam2.1'}_hiera_{size}.yaml"


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
