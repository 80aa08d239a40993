"""A return that is to be confirmed: by hand, and on the hosts with the micro model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batches import legacy
from tracked import FAKE, fake_tensors

import sam2_keyframe as sk
from sam2_keyframe.micro import load_micro_model, load_micro_predictor
from sam2_keyframe.rules.returns import Returns
from sam2_keyframe.synthetic import make_clip

FRAMES = 24


def _square(x: int) -> torch.Tensor:
    """Logits of a mask of 4 by 4 cells."""
    logits = torch.full((16, 16), -5.0)
    logits[4:8, x : x + 4] = 5.0
    return logits


def test_by_hand() -> None:
    """Seen at 0; 3 cells on (IoU 1/7) it has jumped, up to 2 frames after it was seen; a return is to be well rated."""
    returns = Returns(sk.Confirm(quality=0.4, jump=3.0, overlap=0.25, within=2))
    steps = [  # score, predicted IoU, place, whether it is believed
        (0.5, 0.1, 0, True),  # nothing to compare with
        (0.5, 0.1, 1, True),  # IoU 3/5
        (2.5, 0.9, 4, False),  # it jumped: 3 are asked for
        (3.5, 0.5, 4, True),  # two frames after it was seen, and surer
        (-1.0, 0.9, 4, False),  # gone
        (5.0, 0.4, 4, False),  # it was hidden, and is rated no higher than 0.4
        (0.5, 0.5, 12, True),  # three frames after it was seen it may be anywhere
        (2.5, 0.5, 0, False),
    ]
    for score, iou, place, believed in steps:
        judged = float(returns.judge(torch.tensor([[score]]), torch.tensor(iou), _square(place)))
        assert judged == (score if believed else -abs(score)), (score, place)
    returns.reset()
    assert float(returns.judge(torch.tensor([[0.5]]), torch.tensor(0.1), _square(8))) == 0.5


@pytest.mark.parametrize("bad", [{"quality": -1.0}, {"within": 0}, {"jump": float("nan")}, {"overlap": 2}])
def test_bad_numbers_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Confirm\\({next(iter(bad))}"):
        sk.Confirm(**bad)
    with pytest.raises(TypeError, match=r"confirm=3\.0: give Confirm\(\) or None"):
        sk.make_method("samurai", confirm=3.0)


@pytest.fixture(scope="module")
def away() -> Any:
    """Two objects, of which the first one leaves and returns twice."""
    return make_clip("leave_and_return", seed=7, frames=FRAMES, size=64, objects=2)


def _track(host: str, clip: Any, confirm: sk.Confirm | None, reverse: bool = False) -> Any:
    """Return masks (T, N, H, W) of one pass, in tracking order, and object scores by object."""
    first, order = (FRAMES - 1, range(FRAMES - 1, -1, -1)) if reverse else (0, range(FRAMES))
    if host == "transformers":
        pytest.importorskip("transformers")
        from on_transformers import add_mask, new_session, pixels

        model = load_micro_model("transformers", image_size=64)
        state = new_session(model, pixels(clip.frames))
        for obj_id in (1, 2):
            add_mask(state, first, obj_id, clip.masks[first] == obj_id)
        with sk.wrap(model, "samurai", confirm=confirm), torch.inference_mode():
            masks = [model(state, frame_idx=t, reverse=reverse).pred_masks[:, 0].clone() for t in order]
            stats = sk.memory_stats(state)
    else:
        model = (
            legacy(lambda: load_micro_predictor(image_size=64))
            if host == "legacy"
            else load_micro_predictor(image_size=64)
        )
        with sk.wrap(model, "samurai", confirm=confirm):
            state = sk.init_state(model, clip.frames)
            for obj_id in (1, 2):
                model.add_new_mask(state, first, obj_id, torch.from_numpy(clip.masks[first] == obj_id))
            masks = [logits[:, 0].clone() for *_, logits in model.propagate_in_video(state, reverse=reverse)]
            stats = sk.memory_stats(state)
    return torch.stack(masks), {o: [row.scores["object_score"] for row in stats[o].rows] for o in (1, 2)}


CASES = [("sam2", False), ("sam2", True), ("legacy", False), ("transformers", False)]


@pytest.mark.slow
@pytest.mark.parametrize(("host", "reverse"), CASES)
def test_on_hosts(host: str, reverse: bool, away: Any) -> None:
    """Bounds of 0 change nothing; with one that no rating reaches, what is hidden once stays away, each for itself."""
    plain, scores = _track(host, away, None, reverse)
    assert min(scores[1]) < 0 < scores[1][-1], "the object was gone and is back"
    same, _ = _track(host, away, sk.Confirm(quality=0.0, jump=0.0), reverse)
    assert torch.equal(plain, same)
    late, judged = _track(host, away, sk.Confirm(quality=1.0, jump=0.0, within=1), reverse)
    for i, obj_id in enumerate((1, 2)):
        hidden = next((t for t, score in enumerate(scores[obj_id]) if score <= 0), FRAMES)  # row t is of frame t + 1
        assert judged[obj_id][: hidden + 1] == scores[obj_id][: hidden + 1], "nothing was in doubt until then"
        assert all(score < 0 for score in judged[obj_id][hidden:]), "nothing is rated as high as that"
        assert not (late[hidden + 1 :, i] > 0).any()
        assert torch.equal(late[: hidden + 1, i], plain[: hidden + 1, i])


def test_no_value_is_read_on_the_host() -> None:
    with fake_tensors():
        returns = Returns(sk.Confirm())
        for _ in range(3):
            score, mask = torch.empty(1, 1, device=FAKE, dtype=torch.bfloat16), torch.empty(16, 16, device=FAKE)
            judged = returns.judge(score, torch.empty((), device=FAKE), mask)
    assert judged.device.type == FAKE
    assert judged.dtype == torch.bfloat16
