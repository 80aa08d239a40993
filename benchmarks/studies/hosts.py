"""What a host holds, frame by frame: a stream under transformers, or facebookresearch's predictors over a long video.

    python -m benchmarks.studies.hosts [--host transformers | sam2 | legacy]

The micro model follows two objects through a clip that begins again every 40 frames. Bytes are those of the storages
that the session keeps alive, memories (all that is stored of the objects) and pixels apart; a view of a larger tensor
counts as that tensor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import sam2_keyframe as sk
from sam2_keyframe.micro import load_micro_model
from sam2_keyframe.synthetic import make_clip

RESULTS = Path(__file__).parent / "hosts"
UNWRAPPED = "unwrapped"


def kept(session: Any) -> dict[str, int]:
    """Return the bytes that a session of transformers keeps of objects and of pixels."""
    stored: list[Tensor] = []
    for output_dict in session.output_dict_per_obj.values():
        for kind in ("cond_frame_outputs", "non_cond_frame_outputs"):
            for entry in output_dict[kind].values():
                for value in entry.values():
                    stored += value if isinstance(value, list) else [value]
    return {"memories": _nbytes(stored), "pixels": _nbytes(list(session.processed_frames.values()))}


def _nbytes(tensors: list[Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def resident() -> int:
    """Return the bytes of the process that are in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def stream(method: str, frames: int, image_size: int, every: int = 50) -> list[dict[str, int]]:
    """Return what is kept after every `every`-th frame of a stream."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    model: Any = load_micro_model("transformers", image_size=image_size)
    clip = make_clip("leave_and_return", seed=1, frames=40, size=image_size, objects=2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.from_numpy(clip.frames).permute(0, 3, 1, 2) / 255 - mean) / std
    if method != UNWRAPPED:
        sk.wrap(model, method)
    session = Sam2VideoInferenceSession(video_height=image_size, video_width=image_size, dtype=torch.float32)
    for obj_id in (1, 2):
        mask = torch.from_numpy(clip.masks[0] == obj_id)[None, None].float()
        session.add_mask_inputs(session.obj_id_to_idx(obj_id), 0, mask)
        session.obj_with_new_inputs.append(obj_id)
    rows = []
    for t in range(frames):
        model(inference_session=session, frame=pixels[t % len(pixels)].clone())
        if (t + 1) % every == 0:
            rows.append({"frames": t + 1, **kept(session), "resident": resident()})
    return rows


class Repeated:
    """A clip as a longer video, which begins again whenever it ends."""

    def __init__(self, clip: Any, frames: int) -> None:
        self._clip, self._frames = clip, frames

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, t: int) -> Any:
        return self._clip.frames[t % len(self._clip.frames)]


def propagate(host: str, method: str, frames: int, image_size: int, every: int = 50) -> list[dict[str, int]]:
    """Return what facebookresearch's predictor of today, or the legacy one, keeps; its pixels are read lazily."""
    from sam2 import sam2_video_predictor, sam2_video_predictor_legacy

    made = {"sam2": sam2_video_predictor, "legacy": sam2_video_predictor_legacy}[host].SAM2VideoPredictor
    with mock.patch.object(sam2_video_predictor, "SAM2VideoPredictor", made):
        predictor: Any = load_micro_model("sam2", image_size=image_size)
    clip = make_clip("leave_and_return", seed=1, frames=40, size=image_size, objects=2)
    if method != UNWRAPPED:
        sk.wrap(predictor, method, keep_masks=False)
    state = sk.init_state(predictor, Repeated(clip, frames))
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
    rows = []
    for t, _, _ in predictor.propagate_in_video(state):
        if (t + 1) % every == 0:
            stored: list[Tensor] = []
            for place in (*state["output_dict_per_obj"].values(), state.get("output_dict", {})):
                for kind in ("cond_frame_outputs", "non_cond_frame_outputs"):
                    for entry in place.get(kind, {}).values():
                        for value in entry.values():
                            stored += value if isinstance(value, list) else [value]
            tensors = [value for value in stored if isinstance(value, Tensor)]
            rows.append({"frames": t + 1, "memories": _nbytes(tensors), "resident": resident()})
    return rows


def main() -> None:
    """Run under each method, and write what was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--host", choices=("transformers", "sam2", "legacy"), default="transformers")
    parser.add_argument("--methods", nargs="+", default=[UNWRAPPED, "window", "keyframe"])
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for method in arguments.methods:
        given = method, arguments.frames, arguments.size
        streamed = arguments.host == "transformers"
        rows = stream(*given) if streamed else propagate(arguments.host, *given)
        about = {"method": method, "image_size": arguments.size, "objects": 2, "rows": rows}
        name = "stream" if streamed else arguments.host
        path = RESULTS / f"{name}_{method}_{arguments.size}px_{arguments.frames}.json"
        path.write_text(json.dumps(about, indent=1) + "\n")
        print(method, rows[0], rows[-1])


if __name__ == "__main__":
    main()
