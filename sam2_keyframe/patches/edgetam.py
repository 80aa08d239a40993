"""The host transformers' `EdgeTamVideoModel` (5.x), whose memories are no grid but a few latents.

A frame goes as under `Sam2VideoModel`, except that an object's memory is encoded with its inference, not in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from sam2_keyframe.bank.compression import Chain, Downsample
from sam2_keyframe.bank.statistics import has_memory
from sam2_keyframe.bank.store import Entry
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.transformers import REQUIRED, STEP, Session, Transformers, is_called


def check_codecs(method: KeyframeMemory, latents: int) -> None:
    """Refuse a method that stores memories of so many latents as a coarser grid.

    Raises:
        ValueError: It does.
    """
    for codec in (method.keyframes.codec, method.others.codec):
        parts = codec.codecs if isinstance(codec, Chain) else (codec,)
        if any(isinstance(part, Downsample) for part in parts):
            raise ValueError(
                f"{codec!r} coarsens a grid, and EdgeTAM's memories are {latents} latents and no grid: choose Int8() "
                "or PCA(0.4)"
            )


class EdgeTam(Transformers):
    """Runs one method on one model, by wrapping its methods on the instance.

    Args:
        predictor: The model; unchanged until `install`.
        method: The method.

    Raises:
        TypeError: The method attends to parts of a memory, which needs a grid.
        ValueError: It stores memories in a form that needs a grid.
    """

    NAME: ClassVar[str] = "EdgeTamVideoModel of transformers 5"
    MODELS: ClassVar[tuple[str, ...]] = ("EdgeTamVideoModel",)
    SESSIONS: ClassVar[tuple[str, ...]] = ("EdgeTamVideoInferenceSession",)
    REQUIRED: ClassVar[Mapping[str, set[str]]] = REQUIRED

    @classmethod
    def knows(cls, predictor: object) -> bool:
        """Return whether the model is, or derives from, this host's."""
        return is_called(predictor, cls.MODELS)

    def _check_memories(self) -> None:
        """Check that memories can be stored as the method wants; what it attends to, the attention hook checks."""
        check_codecs(self.method, self.latents)

    @classmethod
    def hand_back(cls, session: Session) -> None:
        """Leave a session as transformers has it, without the frames whose memory left: EdgeTAM counts memories."""
        super().hand_back(session)
        for output_dict in session.output_dict_per_obj.values():
            tracked = output_dict["non_cond_frame_outputs"]
            for frame_idx in [t for t, entry in tracked.items() if not has_memory(entry)]:
                del tracked[frame_idx]

    @property
    def latents(self) -> int:
        """How many tokens a memory has."""
        config = self.model.config
        return int(config.perceiver_resampler_num_latents + config.perceiver_resampler_num_latents_2d)

    def _memory_grid(self) -> tuple[int, int]:
        return self.latents, 1

    def _beside_nbytes(self) -> int:
        """Return the bytes of a position encoding: EdgeTAM stores one with every frame."""
        return self.latents * int(self.model.mem_dim) * int(self.model.dtype.itemsize)

    def ours(self, tokens: Tensor) -> Tensor:
        """Return a memory, or its position encoding, as (1, C, n, 1); in transformers it is (1, n, C)."""
        return tokens.transpose(1, 2)[..., None]

    @staticmethod
    def theirs(memory: Tensor) -> Tensor:
        """Return (1, n, C) for (1, C, n, 1)."""
        return memory[..., 0].transpose(1, 2)

    def _as_stored(self, entry: Entry, session: Session) -> dict[str, Any]:
        shown = super()._as_stored(entry, session)
        del shown["high_res_masks"]
        return shown

    def _encode_as_prompted(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        step = STEP.get()
        if step is not None and step.tracking is not None:
            step.tracking.as_prompted = self.ours(original(**{**call, "is_mask_from_pts": True})[0])
        return original(**call)

    def _attention_shares(self, embed: Tensor, masks: Tensor, entry: Entry) -> None:
        """Return None: latents have no place in the image that rotary phases could tell."""
