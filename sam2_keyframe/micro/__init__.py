"""The embedded micro SAM 2: the real architecture, small enough for a laptop CPU, with weights in the package.

Trained on generated video only (``benchmarks/micro/train.py``), for demos, tests and offline sweeps; use official
checkpoints for work. What it can and cannot do: ``MODEL_CARD.md`` beside this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_keyframe.micro.config import build_model, check_image_size
from sam2_keyframe.micro.transformers import build_transformers_model

if TYPE_CHECKING:
    import torch
    from sam2.sam2_video_predictor import SAM2VideoPredictor

__all__ = ["HOSTS", "WEIGHTS", "build_model", "load_micro_model", "load_micro_predictor"]

HOSTS = ("sam2", "transformers")
"""Packages whose classes the model can be made of."""

WEIGHTS = Path(__file__).with_name("micro.safetensors")
"""The weights in the package: float16 safetensors."""


def load_micro_predictor(device: str | torch.device = "cpu", image_size: int = 256) -> SAM2VideoPredictor:
    """The embedded model as a stock ``SAM2VideoPredictor`` in evaluation mode; needs no network.

    Args:
        device: where to put it.
        image_size: side of the square the model sees, a multiple of 32 from 64 to 1024; it was trained at 128 and 256.

    Returns:
        SAM 2's own predictor class, float32, with the post-processing settings of ``build_sam2_video_predictor``
        except hole filling, which needs SAM 2's compiled extension and is off.

    Raises:
        ImportError: ``sam2`` or ``safetensors`` is not installed.
        ValueError: ``image_size`` is out of range.
        FileNotFoundError: the weights are missing from the installation.
    """
    predictor: SAM2VideoPredictor = load_micro_model("sam2", device, image_size)
    return predictor


def load_micro_model(host: str = "sam2", device: str | torch.device = "cpu", image_size: int = 256) -> Any:
    """The embedded model under the classes of a host, in evaluation mode, float32; needs no network.

    Args:
        host: "sam2" for a ``SAM2VideoPredictor``, as ``load_micro_predictor`` returns it; "transformers" for a
            ``Sam2VideoModel``.
        device: where to put it.
        image_size: side of the square the model sees, a multiple of 32 from 64 to 1024; it was trained at 128 and 256.

    Raises:
        ImportError: the host or ``safetensors`` is not installed.
        ValueError: ``host`` is unknown or ``image_size`` is out of range.
        FileNotFoundError: the weights are missing from the installation.
    """
    if host not in HOSTS:
        raise ValueError(f"host={host!r}: choose one of {', '.join(map(repr, HOSTS))}")
    check_image_size(image_size)
    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"the micro model's weights are missing: {WEIGHTS}")
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("the micro model needs safetensors: pip install 'sam2-keyframe[micro]'") from error
    weights = load_file(WEIGHTS)
    model: Any
    if host == "transformers":
        model = build_transformers_model(weights, image_size)
    else:
        model = build_model(image_size, initialise=False)
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.to(device).eval()
