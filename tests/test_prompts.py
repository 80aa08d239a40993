"""Prompts by object id: what SAM 2 is called with, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sam2_keyframe.video.prompts import read_prompts

SIZE = (96, 128)
ON, NAN = [5.0, 6.0], float("nan")


@pytest.mark.parametrize("form", [tuple, list, np.array, torch.tensor])
def test_forms(form: Any) -> None:
    """Tuples, lists, arrays and tensors, corners of the frame and boxes that reach beyond it included."""
    corners, box = [[0.0, 0.0], [128.0, 96.0]], [-3.5, 4, 200, 90]
    mask = torch.zeros(SIZE) if form is torch.tensor else np.zeros(SIZE, np.uint8)
    found = read_prompts({"a": mask}, {1: (form(corners), form([1, 0]))}, {1: form(box), 2: form(box)}, SIZE)
    assert list(found) == ["a", 1, 2]
    assert list(found["a"]) == ["mask"]
    assert found["a"]["mask"].shape == SIZE
    assert found[1]["points"].tolist() == corners
    assert (found[1]["labels"].dtype, found[1]["labels"].tolist()) == (np.int32, [1, 0])
    for obj_id in (1, 2):
        assert (found[obj_id]["box"].dtype, found[obj_id]["box"].tolist()) == (np.float32, box)
    assert read_prompts(None, None, None, SIZE) == {}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"masks": {1: np.zeros((2, 3, 4), bool)}}, r"mask of object 1 has 3 dimensions; give"),
        ({"masks": {1: np.zeros((128, 96), bool)}}, r"mask of object 1 is 96x128 and the frame 128x96; give"),
        ({"masks": {1: np.ones(SIZE)}, "boxes": {1: [1, 2, 3, 4]}}, r"object 1 has a mask and points or a box"),
        ({"points": {1: [[1.0, 2.0]]}}, r"points\[1\] is .* give 2 parts"),
        ({"points": {1: ("here", "there")}}, r"points\[1\] is .* give 2 parts"),
        ({"points": {1: 7}}, r"points\[1\] is 7; give 2 parts"),
        ({"points": {1: ([ON], [1, 1])}}, r"points of object 1 have shape \(1, 2\) and labels \(2,\)"),
        ({"points": {1: (np.zeros((0, 2)), [])}}, r"points of object 1 have shape \(0, 2\)"),
        ({"points": {1: ([ON], [2])}}, r"points of object 1 have labels \[2.0\]; give 1 .* or 0"),
        ({"points": {1: ([ON, [129.0, 3.0]], [1, 1])}}, r"not all on the frame, which is 128x96; give x from 0 to 128"),
        ({"points": {1: ([[NAN, 3.0]], [1])}}, r"not all on the frame"),
        ({"boxes": {1: [1, 2, 3]}}, r"boxes\[1\] is .* give 4 parts"),
        ({"boxes": {1: [[1, 2], [3, 4], [5, 6], [7, 8]]}}, r"box of object 1 has 8 numbers; give x0, y0, x1, y1"),
        ({"boxes": {"cat": [60, 50, 20, 30]}}, r"box of object 'cat', .*, is empty; .* not width and height"),
        ({"boxes": {1: [5, 5, 5, 9]}}, r"box of object 1, .*, is empty"),
        ({"boxes": {1: [NAN, 5, 5, 9]}}, r"box of object 1, .*, is empty"),
        ({"boxes": {1: [128, 5, 140, 9]}}, r"box of object 1, .*, lies outside the frame, which is 128x96; give"),
        ({"boxes": {1: [5, -9, 20, 0]}}, r"lies outside the frame"),
        ({"boxes": {1: [5, 5, float("inf"), 9]}}, r"lies outside the frame"),
    ],
)
def test_refused(prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompts(**{"masks": None, "points": None, "boxes": None, **prompts}, size=SIZE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_masks_of_0_and_255_are_masks(dtype: torch.dtype) -> None:
    """SAM 2 would read them as they are where the mask has the model's size, and shift the logits by thousands."""
    wanted = torch.zeros(SIZE, dtype=torch.bool)
    wanted[10:40, 20:60] = True
    mask = wanted.to(dtype) * 255
    for given in (mask, mask.numpy()):
        found = read_prompts({1: given}, None, None, SIZE)[1]["mask"]
        assert torch.equal(torch.as_tensor(found), wanted)
