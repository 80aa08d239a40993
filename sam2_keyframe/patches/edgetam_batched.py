"""The host EdgeTAM, of its own repository: the legacy layout, with memories that are no grid but a few latents.

It stores a memory as (B, n, C), and reads one as (B, C, h, w) likewise. So while it is wrapped, memories are encoded as
(B, C, n, 1), which is what the bank knows, and nothing else is changed on the way; unwrapping puts them back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sam2_keyframe.bank.bank import KEY, Tracking
from sam2_keyframe.bank.statistics import has_memory
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.batched import COND, TRACKED, Batched, Layout
from sam2_keyframe.patches.edgetam import check_codecs
from sam2_keyframe.patches.frames import Frames
from sam2_keyframe.patches.together import Read
from sam2_keyframe.patches.wrapping import WithSettings


class EdgeTamBatched(Batched):
    """Runs one method on one predictor.

    Its perceiver fails on two objects at once, so it is given one after the other.

    Args:
        predictor: The predictor; unchanged until `install`.
        method: The method.

    Raises:
        TypeError: The method attends to parts of a memory, which needs a grid.
        ValueError: It stores memories in a form that needs a grid.
    """

    NAME: ClassVar[str] = "EdgeTAM's SAM2VideoPredictor, of its own repository (edgetam-dimos)"
    TESTED: ClassVar[tuple[str, ...]] = ("1.0.1",)

    def __init__(self, predictor: Any, method: KeyframeMemory) -> None:
        perceiver = predictor.spatial_perceiver
        self.latents = int(max(perceiver.num_latents, 0) + max(perceiver.num_latents_2d, 0))
        check_codecs(method, self.latents)
        super().__init__(predictor, method)
        self._frames = Frames(self.model, places=False)

    def batch_objects(self) -> None:
        """Refuse: all objects are in one batch, and only what is read is put together by object.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("EdgeTAM counts the memories of one object at a time: leave out batch_objects")

    @staticmethod
    def knows(predictor: object) -> bool:
        """Return whether a predictor of the legacy layout has a perceiver."""
        return Batched.knows(predictor) and getattr(predictor, "spatial_perceiver", None) is not None

    def install(self) -> None:
        """Put the wrappers in place."""
        self._wrapping.wrap("_encode_new_memory", self._encode_latents)
        super().install()

    # -- memories in our form ---------------------------------------------------------------------------------------

    def _encode_latents(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Encode memories as (B, C, n, 1), each object's latents by themselves."""
        perceiver = self.model.spatial_perceiver

        def one_by_one(features: Tensor, encodings: Tensor) -> tuple[Tensor, Tensor]:
            pairs = [perceiver(features[i : i + 1], encodings[i : i + 1]) for i in range(len(features))]
            latents, places = zip(*pairs, strict=True)
            return torch.cat(latents), torch.cat(places)

        features, encodings = WithSettings.bind(original, spatial_perceiver=one_by_one)(**call)
        return ours(features), [ours(encoding) for encoding in encodings]

    def _layout(self, state: MutableMapping[str, Any]) -> Layout:
        layout = state["constants"].get(KEY) or Latents(state)
        layout.enter()
        return layout

    # -- what is read -----------------------------------------------------------------------------------------------

    def _memory_grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        return self.latents, 1

    def _read_of(
        self, original: Callable[..., Tensor], call: MutableMapping[str, Any], tracking: Tracking | None
    ) -> Read:
        """Return one object's read; EdgeTAM counts entries, and those that carry a pointer alone are no memories."""
        read, attention = super()._read_of(original, call, tracking), self.model.memory_attention

        def attend(**given: Any) -> Tensor:
            spatial = given["memory"].shape[0] - given["num_obj_ptr_tokens"]
            out: Tensor = attention(**{**given, "num_spatial_mem": spatial // self.latents})
            return out

        return Read(lambda **more: read.run(**{"memory_attention": attend, **more}), read.layout)


class Latents(Layout):
    """One state's frames, their memories as (B, C, n, 1) until `join`.

    Args:
        state: The host's inference state.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__(state)
        self._constants: MutableMapping[str, Any] = state["constants"]
        self._dicts: Sequence[MutableMapping[int, Any]] = state["output_dict"].values()

    def enter(self) -> None:
        """Bring memories that the host stored by itself into our form."""
        self._change(ours, 3)

    def join(self) -> None:
        """Put batches together, and memories as the host has them, without those that left: EdgeTAM counts them."""
        super().join()
        for frames in (self.batches, *(place[TRACKED] for place in self.places.values())):
            for frame_idx in [t for t, entry in frames.items() if not has_memory(entry)]:
                del frames[frame_idx]
        self._change(theirs, 4)

    def _change(self, change: Callable[[Tensor], Tensor], dim: int) -> None:
        """Change all memories that have `dim` dimensions, one tensor once."""
        changed: dict[int, tuple[Tensor, Tensor]] = {}

        def once(tensor: Tensor) -> Tensor:
            if tensor.ndim != dim:
                return tensor
            return changed.setdefault(id(tensor), (tensor, change(tensor)))[1]

        kinds = [each for place in self.places.values() for each in (place[COND], place[TRACKED])]
        for entries in (*self._dicts, *kinds):
            for entry in entries.values():
                if entry["maskmem_features"] is not None:
                    entry["maskmem_features"] = once(entry["maskmem_features"])
                    entry["maskmem_pos_enc"] = [once(each) for each in entry["maskmem_pos_enc"]]
        shared = self._constants.get("maskmem_pos_enc")
        if shared is not None:
            self._constants["maskmem_pos_enc"] = [once(each) for each in shared]


def ours(latents: Tensor) -> Tensor:
    """Return (B, C, n, 1) for (B, n, C)."""
    return latents.transpose(1, 2)[..., None]


def theirs(memory: Tensor) -> Tensor:
    """Return (B, n, C) for (B, C, n, 1)."""
    return memory[..., 0].transpose(1, 2)
