"""What published methods attend to, against traces worked by hand from their rules (the numbers of a clip are given).

The prompt lies on frame 0 and is attended to besides. Every trace holds occlusion and frames of low predicted IoU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.bank.decisions import Selection
from sam2_keyframe.bank.reading import assign_codes
from sam2_keyframe.types import Moment

Numbers = Callable[[int], Mapping[str, float]]


def _trace(
    method: str | sk.KeyframeMemory,
    numbers: Numbers,
    last: int,
    similarity: Callable[[int, int], float] | None = None,
    reverse: bool = False,
) -> tuple[dict[int, set[int]], dict[int, list[int]]]:
    """Return the frames attended to and those whose pointers are read, nearest slot first, at frames 1 .. `last`.

    `similarity(t, f)` is that of frame t to an earlier one, the prompt among them.

    In reverse, frame f of the trace is frame 100 - f of the video: rules look at tracking order alone.
    """
    at = (lambda f: 100 - f) if reverse else (lambda f: f)
    selection = Selection(sk.make_method(method))
    attended, pointers = {}, {}
    for t in range(1, last + 1):
        moment = Moment(at(t), reverse, slots=6, pointers=15)
        selection.begin(moment)
        selection.age(moment)
        tracked = [at(f) for f in range(1, t)]
        selection.usable = tracked.__contains__
        newest, held, _ = selection.choose(moment, prompts=1)
        attended[t] = {at(f) for f in (*newest, *held)}
        found = selection.pointers(moment, tracked, prompted=True)
        pointers[t] = [at(found[place]) for place in map(moment.near, range(1, 16)) if place in found]
        pending = selection.send(None, moment, [at(0)], [])
        scores = numbers(t)
        compared = [] if similarity is None else [0, *(at(f) for f in selection.held() if f != at(t))]
        similar = {} if similarity is None else {at(f): similarity(t, f) for f in compared}
        pending.record = replace(pending.record, scores=scores, similarity=similar)
        selection.decide(pending)
        selection.age(moment.then())
        selection.trim(moment.then())
    return attended, pointers


def _common(frame: int) -> Mapping[str, float]:
    """Occluded on 9 to 12; poor masks on 5 and 6, middling ones on 14 and 15."""
    iou = 0.2 if frame in (5, 6) else 0.4 if frame in (14, 15) else 0.9
    return {"object_score": -3.0 if 9 <= frame <= 12 else 3.0, "predicted_iou": iou, "area": 0.1}


SAMURAI = {
    1: [], 2: [1], 3: [1, 2], 4: [1, 2, 3], 5: [1, 2, 3, 4],
    6: [1, 2, 3, 4, 5],  # 5 failed, but it is the newest
    7: [1, 2, 3, 4, 6],  # so did 6; 5 is passed over
    8: [1, 2, 3, 4, 7], 9: [1, 2, 3, 4, 7, 8],
    10: [2, 3, 4, 7, 8, 9], 11: [2, 3, 4, 7, 8, 10], 12: [2, 3, 4, 7, 8, 11], 13: [2, 3, 4, 7, 8, 12],
    14: [2, 3, 4, 7, 8, 13],
    15: [3, 4, 7, 8, 13, 14], 16: [3, 4, 7, 8, 13, 15],  # 14 and 15 fail at 0.5
    17: [3, 4, 7, 8, 13, 16], 18: [4, 7, 8, 13, 16, 17], 19: [7, 8, 13, 16, 17, 18], 20: [8, 13, 16, 17, 18, 19],
    21: [13, 16, 17, 18, 19, 20], 22: [16, 17, 18, 19, 20, 21], 23: [17, 18, 19, 20, 21, 22],
    24: [18, 19, 20, 21, 22, 23],
}  # fmt: skip

SAM2LONG = {
    **{t: SAMURAI[t] for t in range(1, 15)},  # 0.2 fails at 0.3 as well
    15: [3, 4, 7, 8, 13, 14], 16: [4, 7, 8, 13, 14, 15],  # 0.4 passes
    17: [7, 8, 13, 14, 15, 16], 18: [8, 13, 14, 15, 16, 17], 19: [13, 14, 15, 16, 17, 18],
    20: [14, 15, 16, 17, 18, 19], 21: [15, 16, 17, 18, 19, 20],
}  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
def test_samurai(reverse: bool) -> None:
    attended, pointers = _trace("samurai", _common, 24, reverse=reverse)
    assert attended == {t: set(frames) for t, frames in SAMURAI.items()}
    assert pointers[20] == [*range(19, 4, -1)]  # as in SAM 2: the last 15, whatever they show


@pytest.mark.parametrize("reverse", [False, True])
def test_sam2long(reverse: bool) -> None:
    attended, pointers = _trace("sam2long", _common, 21, reverse=reverse)
    assert attended == {t: set(frames) for t, frames in SAM2LONG.items()}
    assert pointers[6] == [5, 4, 3, 2, 1]  # the newest failed and is read all the same
    assert pointers[11] == [10, 8, 7, 4, 3, 2, 1]  # by rank: 8 is read where SAM 2 looks for 9
    assert pointers[20] == [19, 18, 17, 16, 15, 14, 13, 8, 7, 4, 3, 2, 1]


def test_sam3() -> None:
    """Effective scores: 5 and 6 nearly invisible (0.009), 14 rated 0.005, 15 just visible enough (0.045)."""

    def numbers(frame: int) -> Mapping[str, float]:
        score = {5: 0.02, 6: 0.02, 15: 0.1}.get(frame, -3.0 if 9 <= frame <= 12 else 3.0)
        return {"object_score": score, "predicted_iou": 0.005 if frame == 14 else 0.9, "area": 0.1}

    expected = {
        **{t: SAMURAI[t] for t in range(1, 17)},
        17: [4, 7, 8, 13, 15, 16], 18: [7, 8, 13, 15, 16, 17], 19: [8, 13, 15, 16, 17, 18],
        20: [13, 15, 16, 17, 18, 19], 21: [15, 16, 17, 18, 19, 20], 22: [16, 17, 18, 19, 20, 21],
    }  # fmt: skip
    attended, pointers = _trace("sam3", numbers, 22)
    assert attended == {t: set(frames) for t, frames in expected.items()}
    assert pointers[20] == [19, 18, 17, 16, 15, 13, 8, 7, 4, 3, 2, 1]


def test_surgical() -> None:
    """Frames 9 to 12 are blank: alike among themselves, unlike the others; otherwise neighbours are most alike."""

    def blank(frame: int) -> bool:
        return 9 <= frame <= 12

    def similarity(newest: int, older: int) -> float:
        if blank(newest) != blank(older):
            return 0.01 * older
        return 0.9 + 0.005 * older if blank(older) else 0.9 - 0.1 * (newest - older)

    expected = {
        1: [], 2: [1], 3: [1, 2], 4: [1, 2, 3], 5: [1, 2, 3, 4], 6: [1, 2, 3, 4, 5],  # fewer than seven with the prompt
        7: [1, 2, 3, 6], 8: [2, 3, 4, 7], 9: [3, 4, 5, 8],  # of the five between, the two nearest are most alike
        10: [4, 5, 6, 9],  # 9 is blank: of 4 to 8, the two of the highest index
        11: [5, 6, 7, 10],  # 9 as blank as 10, then 8
        12: [6, 7, 8, 11], 13: [7, 8, 9, 12],
        14: [9, 10, 11, 13],  # 13 shows the object again: 8 (0.4) and 12 (0.12) leave
        15: [9, 10, 11, 14], 16: [10, 11, 12, 15], 17: [11, 12, 13, 16], 18: [12, 13, 14, 17], 19: [13, 14, 15, 18],
        20: [14, 15, 16, 19],
    }  # fmt: skip
    attended, pointers = _trace("surgical", _common, 20, similarity)
    assert attended == {t: set(frames) for t, frames in expected.items()}
    assert pointers[20] == [*range(19, 4, -1)]


@pytest.mark.parametrize("method", ["dam4sam", "d4sm"])
def test_dam4sam(method: str) -> None:
    """Empty on 9 to 12; a distractor on seven frames, of which three pass the other conditions."""

    def numbers(frame: int) -> Mapping[str, float]:
        return {
            "distractor": 0.5 if frame in (7, 8, 16, 20, 22, 27, 28) else 0.1,
            "predicted_iou": 0.7 if frame == 16 else 0.9,  # so 16 is no anchor
            "area": 0.0 if 9 <= frame <= 12 else 0.2 if frame == 20 else 0.1,  # nor is 20: twice the median
            "object_score": 3.0,
        }

    recent = {
        1: [], 2: [1], 3: [2], 4: [3], 5: [4], 6: [5], 7: [5, 6],
        8: [5, 7],  # 7 is to be an anchor, but is the newest
        9: [5, 8], 10: [5, 8], 11: [5, 8], 12: [5, 8], 13: [5, 8],  # the newest that is not empty
        14: [5, 13], 15: [5, 14], 16: [5, 15],  # 10 is empty
        17: [5, 15, 16], 18: [5, 15, 17], 19: [5, 15, 18], 20: [5, 15, 19], 21: [5, 15, 20], 22: [5, 15, 20, 21],
        23: [5, 15, 20, 22], 24: [5, 15, 20, 23], 25: [5, 15, 20, 24], 26: [5, 15, 20, 25],
        27: [15, 20, 25, 26],  # the prompt, two anchors and four make seven
        28: [15, 20, 25, 27], 29: [15, 20, 25, 28],  # 27 came 5 frames after 22, 28 came 6
        30: [20, 25, 29], 31: [20, 25, 30], 32: [25, 30, 31],
    }  # fmt: skip
    anchors = {t: [f for f in (7, 22, 28) if f < t - 1] for t in recent}
    attended, pointers = _trace(method, numbers, 32)
    assert attended == {t: {*recent[t], *anchors[t]} for t in recent}
    assert pointers[14] == [13, 8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("reverse", [False, True])
def test_rcms(reverse: bool) -> None:
    """Poor on 3 and 5, hidden on 9 to 12 and on 18: the four good ones before 9 are read besides from 10 on."""

    def numbers(frame: int) -> Mapping[str, float]:
        hidden = 9 <= frame <= 12 or frame == 18
        quality = 0.0 if hidden else 0.6 if frame in (3, 5) else 0.7
        return {"object_score": -3.0 if hidden else 3.0, "predicted_iou": 0.9, "area": 0.1, "mask_quality": quality}

    recent = {
        **{t: [*range(max(t - 6, 1), t)] for t in range(1, 10)},  # as in SAM 2
        10: [5, 9],  # 4, 6, 7 and 8 lie in its slots too, which stay empty
        11: [5, 9, 10], 12: [9, 10, 11], 13: [9, 10, 11, 12], 14: [9, 10, 11, 12, 13],
        **{t: [*range(t - 6, t)] for t in range(15, 23)},  # nothing is promoted a second time
    }  # fmt: skip
    promoted = {t: [4, 6, 7, 8] if t >= 10 else [] for t in recent}
    attended, pointers = _trace("rcms", numbers, 22, reverse=reverse)
    assert attended == {t: {*recent[t], *promoted[t]} for t in recent}
    assert pointers[20] == [*range(19, 4, -1)]  # and those of the promoted, see the test with SAM 2 below
    spaced = _trace(sk.make_method("rcms", gap=3), numbers, 10, reverse=reverse)[0]
    assert spaced[10] == {1, 4, 7, *range(5, 10)}


@pytest.mark.parametrize("reverse", [False, True])
def test_rcms_in_sam2(reverse: bool, predictor: Any, clip: Any, clip_folder: Any) -> None:
    """Codes and pointers with which SAM 2 reads them, on a video in which the object is held hidden on frame 12."""
    seen = {}

    def planned(selection: Any, moment: Moment) -> None:
        newest, held, _ = selection.choose(moment, 1)
        seen[moment.frame_idx] = assign_codes("slot", "prompt", newest, held, moment)

    method = sk.make_method("rcms", quality=0.0)
    with sk.wrap(predictor, method):
        state = predictor.init_state(str(clip_folder))
        predictor.add_new_mask(state, 23 if reverse else 0, 1, torch.from_numpy(clip.masks[0] == 1))
        for t, _, _ in predictor.propagate_in_video(state, start_frame_idx=23 if reverse else 0, reverse=reverse):
            bias = predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
            with torch.no_grad():
                bias.add_(-1000.0 if t == (12 if reverse else 11) else 1000.0 if t == (11 if reverse else 12) else 0.0)
            bank = state["output_dict_per_obj"][0][KEY]
            bank.settle()
            moment = Moment(t - 1 if reverse else t + 1, reverse, 6, 15)
            bank.selection.age(moment)
            planned(bank.selection, moment)
    at = (lambda f: 23 - f) if reverse else (lambda f: f)
    assert [row.scores["object_score"] > 0 for row in sk.memory_stats(state)[1].rows] == [t != 12 for t in range(1, 24)]
    assert seen[at(12)] == {at(11 - code): code for code in range(6)}
    assert seen[at(13)] == {at(12): 0, at(7): 5, **dict.fromkeys(map(at, range(8, 12)), 6)}
    assert seen[at(23)] == {**{at(22 - code): code for code in range(6)}, **dict.fromkeys(map(at, range(8, 12)), 6)}
    held = [
        t for t, e in state["output_dict_per_obj"][0]["non_cond_frame_outputs"].items() if e["maskmem_features"].numel()
    ]
    assert len(held) == 6 + 4
    row = sk.memory_stats(state)[1].rows[-1]
    assert row.attended == tuple(sorted([at(0), *map(at, (*range(8, 12), *range(17, 23)))]))
    pointers = 1 + 4 + 11  # of the prompt, of those promoted, of the others of the last 15; two tokens each
    assert row.memory.tokens == 11 * 64 + 2 * pointers


@pytest.mark.parametrize("reverse", [False, True])
def test_samite(reverse: bool) -> None:
    """Even frames are like the prompt (0.9), odd ones less (0.5); likeness among frames falls by 0.1 a frame.

    So 0.3 x one + 0.7 x the other puts every even frame before every odd one, and of each kind the nearest first.
    """

    def similarity(newest: int, older: int) -> float:
        return (0.5 if newest % 2 else 0.9) if older == 0 else max(0.0, 1 - 0.1 * (newest - older))

    expected = {
        1: [], 2: [1], 3: [1, 2], 4: [1, 2, 3], 5: [1, 2, 3, 4],
        6: [1, 2, 3, 4, 5],  # 5 failed, but it is the newest
        7: [1, 2, 3, 4, 6], 8: [1, 2, 3, 4, 7], 9: [1, 2, 3, 4, 7, 8],
        10: [2, 3, 4, 7, 8, 9],  # 9 is hidden: 8 is read in any case, then 4, 2, 7 and 3
        11: [2, 3, 4, 7, 8, 10], 12: [2, 3, 4, 7, 8, 11], 13: [2, 3, 4, 7, 8, 12],
        14: [2, 3, 4, 7, 8, 13],  # 13 is as like 3 as 1: the nearer
        15: [2, 4, 7, 8, 13, 14], 16: [2, 4, 7, 8, 13, 15],  # rejected as 5 was; 13 is read in any case
        17: [2, 4, 7, 8, 13, 16], 18: [2, 4, 8, 13, 16, 17], 19: [2, 4, 8, 16, 17, 18], 20: [2, 4, 8, 16, 18, 19],
        21: [2, 4, 8, 16, 18, 20], 22: [4, 8, 16, 18, 20, 21],
    }  # fmt: skip
    attended, pointers = _trace(sk.make_method("samite", kalman=False), _common, 22, similarity, reverse)
    assert attended == {t: set(frames) for t, frames in expected.items()}
    assert pointers[20] == [*range(19, 4, -1)]


def test_samite_chooses_among_thirty() -> None:
    """The older a frame, the more like the prompt: so the oldest of 30 are read, the newest among those."""

    def numbers(frame: int) -> Mapping[str, float]:
        return {"object_score": 3.0, "predicted_iou": 0.9, "area": 0.1}

    attended, _ = _trace(
        sk.make_method("samite", kalman=False), numbers, 40, lambda t, f: 1 - t / 100 if f == 0 else 0.5
    )
    assert attended[30] == {1, 2, 3, 4, 5, 29}
    assert attended[40] == {10, 11, 12, 13, 14, 39}


def test_moments_in_reverse_mirror_the_order() -> None:
    forward: Any = _trace("stock", _common, 12)
    assert forward == _trace("stock", _common, 12, reverse=True)
