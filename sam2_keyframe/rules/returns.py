"""What is believed of a mask that appears where none was: SAM 2 shows one as soon as its score is above 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sam2_keyframe._checks import check_number, check_whole


@dataclass(frozen=True)
class Confirm:
    """A mask that appears anew, or that jumps, is believed only where SAM 2 is surer of it than it has to be.

    Elsewhere the frame is tracked as one on which the object is hidden: no mask is shown, and its memory and pointer
    say that the object is not there. `Returns(Confirm())` follows one object.

    Attributes:
        quality: Predicted IoU, in [0, 1], that a mask must exceed on a frame after one on which the object was hidden:
            what is taken for the object while it is away is rated low at first, and high once the memory holds it.
        jump: Object score (a logit) that a mask must exceed where it hardly overlaps the last one shown, as that of
            something else does that is taken for the object as it is covered.
        overlap: IoU with the last mask shown, in [0, 1], below which it hardly does.
        within: Frames since the last mask, at least 1, up to which an object that moved so far has jumped.

    Source: ours.
    """

    quality: float = 0.33
    jump: float = 3.0
    overlap: float = 0.25
    within: int = 10

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self, "quality", "overlap", low=0, high=1)
        check_number(self, "jump", low=0)
        check_whole(self, "within")


class Returns:
    """What one object's masks were; the state stays on the device.

    Args:
        rule: The numbers.
    """

    def __init__(self, rule: Confirm) -> None:
        self.rule = rule
        self._last: Tensor | None = None  # (h, w) bool, the last mask shown
        self._since: Tensor | None = None  # frames since then, 0-dim int64

    def reset(self) -> None:
        """Forget the past: on a prompt, and where tracking turns round."""
        self._last = self._since = None

    def judge(self, score: Tensor, iou: Tensor, mask: Tensor) -> Tensor:
        """Return the score of a tracked frame, (1, 1), made negative where the mask is not believed.

        Reads nothing on the host.

        Args:
            score: (1, 1) object score logit.
            iou: 0-dim predicted IoU of the mask that would be shown.
            mask: (h, w) its logits, > 0 is object.
        """
        rule, shown = self.rule, mask > 0
        last = torch.zeros_like(shown) if self._last is None else self._last
        since = score.new_zeros((), dtype=torch.int64) if self._since is None else self._since
        union, both = (shown | last).sum(), (shown & last).sum()
        jumped = last.any() & (both < rule.overlap * union) & (since < rule.within)
        doubtful = (since > 0) & (iou <= rule.quality) | jumped & (score[0, 0] <= rule.jump)
        judged = torch.where(doubtful, -score.abs(), score)
        seen = judged[0, 0] > 0
        self._last = torch.where(seen, shown, last)
        self._since = torch.where(seen, 0, since + 1)
        return judged


RETURNS: dict[str, type] = {"confirm": Confirm}
"""What confirms a return, by name."""
