"""Predictors by name: the embedded micro model, official SAM 2 checkpoints, and image features that runs share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.app.models import SIZES, find_checkpoint, load_checkpoint, read_weights, recognise
from sam2_keyframe.micro import WEIGHTS, load_micro_predictor


def check_model(model: str, folder: Path) -> Path | None:
    """Return the checkpoint that "micro" (None: the embedded model), an official size in a folder or a path stands for.

    Raises:
        ValueError: The name is unknown, or the file holds no SAM 2.
        FileNotFoundError: The file is missing; the message says where to get it.
    """
    if model == "micro":
        return None
    if model not in SIZES and not model.endswith((".pt", ".pth")):
        hint = did_you_mean(model, ["micro", *SIZES])
        raise ValueError(f"no model is called {model!r}; choose micro, {', '.join(SIZES)}, or the path of a .pt{hint}")
    path = find_checkpoint(model, folder) if model in SIZES else Path(model)
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
    """Return a SAM 2 video predictor in evaluation mode; without a checkpoint the micro model, at 256 px.

    Post-processing is off, as in SAM 2's own evaluation (`tools/vos_inference.py`).
    """
    if checkpoint is None:
        return load_micro_predictor(device, image_size or 256)
    return load_checkpoint(checkpoint, device, image_size, postprocessing=False)


def random_official(size: str, device: str) -> Any:
    """Return an official architecture, "tiny" or "large", at 1024 px with random weights: right for time and bytes."""
    torch.manual_seed(0)
    from sam2.build_sam import build_sam2_video_predictor

    predictor = build_sam2_video_predictor(f"configs/sam2.1/sam2.1_hiera_{size[0]}.yaml", None, device=device)
    predictor.fill_hole_area = 0  # needs SAM 2's compiled extension, else it warns on every frame
    return predictor


@contextmanager
def shared_features(predictor: Any, limit: int = 2**30) -> Iterator[None]:
    """Let runs over the same clip compute each frame's image features once, as long as `limit` bytes hold them.

    Features are found again by the frame's pixels, so masks stay equal to the last bit. Position codes depend on the
    features' shape alone (`PositionEmbeddingSine` in sam2/modeling/position_encoding.py) and take five times the bytes
    of the rest; they are held once. What comes when the limit is reached is not kept: runs walk a clip from its start,
    so whichever frame left for it would be asked for sooner.
    """
    compute = predictor.forward_image
    held: dict[bytes, dict[str, Any]] = {}
    codes: dict[torch.Size, Tensor] = {}
    left = limit

    def forward_image(image: Tensor) -> dict[str, Any]:
        nonlocal left
        key = hashlib.blake2b(image.detach().cpu().numpy().tobytes(), digest_size=16).digest()
        features = held.get(key)
        if features is None:
            features = dict(compute(image))
            fresh = [code for code in features["vision_pos_enc"] if code.shape not in codes]
            needed = _nbytes([*fresh, *features["backbone_fpn"]])
            if needed <= left:
                left -= needed
                codes.update({code.shape: code for code in fresh})
                features["vision_pos_enc"] = [codes[code.shape] for code in features["vision_pos_enc"]]
                held[key] = features
        return {name: list(value) if isinstance(value, list) else value for name, value in features.items()}

    before = vars(predictor).get("forward_image")
    vars(predictor)["forward_image"] = forward_image
    try:
        yield
    finally:
        del vars(predictor)["forward_image"]
        if before is not None:
            vars(predictor)["forward_image"] = before


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
