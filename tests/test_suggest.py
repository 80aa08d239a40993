"""Confidence in a frame's mask, and the frames on which a click would help most."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import FRAMES, folder, out, track  # noqa: F401
from PIL import Image

import sam2_keyframe as sk
from sam2_keyframe.app.output import write_mask
from sam2_keyframe.app.page import read_page
from sam2_keyframe.app.suggest import APART, Backwards, Check, Evidence, check, suggest
from sam2_keyframe.bank.decisions import Pending
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.scorers.features import pooled
from sam2_keyframe.video.confidence import Confidence, with_confidence


def stream(predictor: Any, clip: Any, method: Any, count: int, **more: Any) -> tuple[list[torch.Tensor], list[Any]]:
    """Return masks and confidence by frame, of two objects."""
    masks, told = [], []
    with sk.Stream(predictor, method, **more) as each:
        for t in range(count):
            given = {1: clip.masks[0] == 1, 2: clip.masks[0] == 2} if t == 0 else None
            masks.append(each.step(clip.frames[t], masks=given)[2])
            told.append(each.confidence() if more.get("confidence") else None)
    return masks, told


@pytest.mark.parametrize("method", ["stock", "keyframe"])
def test_confidence_changes_no_mask_and_adds_no_read(method: str, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load_micro_predictor(image_size=64)
    plain, _ = stream(predictor, clip, method, 6)
    reads: list[int] = []
    read = Pending.read
    monkeypatch.setattr(Pending, "read", lambda pending: (reads.append(pending.frame_idx), read(pending))[1])
    measured, told = stream(predictor, clip, method, 6, confidence=True)
    for a, b in zip(plain, measured, strict=True):
        assert torch.equal(a, b)
    assert sorted(reads) == sorted([*range(1, 6)] * 2), "one copy a frame and object"
    assert told[0] == {}, "prompted frames are not tracked"
    for each in told[1:]:
        assert each.keys() == {1, 2}
        for confidence in each.values():
            assert 0 <= confidence.predicted_iou <= 1
            assert 0 <= confidence.stability <= 1
            assert -1 <= confidence.agreement <= 1 + 1e-6
            assert math.isfinite(confidence.object_score)


def test_numbers_are_what_they_are_said_to_be(clip: Any) -> None:
    """Against the host's own entries: pooled memory features of the frame and of the only anchor, and logits."""
    predictor = load_micro_predictor(image_size=64)
    with sk.wrap(predictor, with_confidence(sk.make_method("stock"))), torch.inference_mode():
        state = sk.init_state(predictor, clip.frames[:4])
        predictor.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        list(predictor.propagate_in_video(state))
        entries = state["output_dict_per_obj"][0]
        row = sk.memory_stats(state)[1].rows[-1]
    anchor, last = entries["cond_frame_outputs"][0], entries["non_cond_frame_outputs"][3]
    vectors = [pooled(each["maskmem_features"].float(), each["pred_masks"]) for each in (anchor, last)]
    told = Confidence.of(row)
    assert told.agreement == pytest.approx(float(torch.cosine_similarity(*vectors, dim=0)), abs=1e-3)
    logits = last["pred_masks"]
    assert told.stability == pytest.approx(float((logits > 1).sum() / (logits > -1).sum()))
    assert told.object_score == pytest.approx(float(last["object_score_logits"]))


def test_stream_says_when_confidence_is_not_measured(predictor: Any, clip: Any) -> None:
    with sk.Stream(predictor) as plain, pytest.raises(RuntimeError, match="confidence=True"):
        plain.confidence()


def test_own_scores_keep_their_names() -> None:
    method = sk.KeyframeMemory(sk.Recent(1), sk.Keyframes(2, sk.Stability(delta=2.0) > 0.5))
    assert [s for s in with_confidence(method).scorers if s.name == "stability"] == [sk.Stability(delta=2.0)]
    assert with_confidence(with_confidence(method)) == with_confidence(method)


# -- suggestions --------------------------------------------------------------------------------------------------


def evidence(length: int = 60) -> Evidence:
    iou = np.full(length, 0.9)
    iou[0] = math.nan
    return Evidence(iou, np.ones(length))


def test_a_click_is_suggested_where_doubt_begins_and_lasts() -> None:
    each = evidence()
    each.predicted_iou[20:] = 0.6
    each.predicted_iou[50] = 0.5
    (first, *_) = suggest({7: each}, range(100, 160))
    assert (first.frame, first.object) == (120, 7)
    assert first.reason == "doubt: predicted IoU 0.60"


def test_a_lost_object_is_told_from_one_that_is_away() -> None:
    each = evidence()
    each.seen[20:40] = 0
    each.predicted_iou[20:40] = 0.3
    nobody = Check(np.ones(60), each.seen.copy())
    each.checks["stock"] = nobody
    assert not each.doubt()[20:40].any(), "nobody sees it: it is away"
    other = each.seen.copy()
    other[30:] = 1
    each.checks["backward"] = Check(np.where(other == each.seen, 1.0, 0.0), other)
    (first, *_) = suggest({1: each}, range(60))
    assert first.frame == 30
    assert first.reason == "lost here, while tracking backwards sees it"


def test_disagreement_and_a_failed_backward_check_are_named() -> None:
    for name, text in (("stock", "SAM 2's own memory"), ("backward", "tracking backwards")):
        each = evidence()
        each.checks[name] = Check(np.ones(60), np.ones(60))
        each.checks[name].iou[25:] = 0.1
        (first, *_) = suggest({1: each}, range(60))
        assert (first.frame, first.reason) == (25, f"{text} sees another mask (IoU 0.10)")
        each.checks[name].seen[25:] = 0
        assert suggest({1: each}, range(60))[0].reason == f"{text} does not see it"


def test_suggestions_are_apart_sorted_and_few() -> None:
    found = suggest({1: evidence()}, range(60), 4)
    assert len(found) == 4
    frames = sorted(each.frame for each in found)
    assert min(b - a for a, b in itertools.pairwise(frames)) >= APART
    assert [each.benefit for each in found] == sorted((each.benefit for each in found), reverse=True)
    certain = Evidence(np.ones(9), np.ones(9))
    assert suggest({1: certain}, range(9)) == [], "where there is no doubt nothing is asked"
    assert all(each.frame for each in found), "no click on a prompted frame"


def test_check_compares_object_by_object() -> None:
    ours = [np.array([[1, 1], [0, 2]]), np.array([[0, 0], [2, 2]]), np.zeros((2, 2), int)]
    theirs = [(1, np.array([[1, 0], [2, 2]]), [1, 2]), (0, np.array([[1, 0], [0, 2]]), [1, 2]), (9, ours[0], [1])]
    made = {obj_id: Evidence(np.zeros(3), np.zeros(3)) for obj_id in (1, 2)}
    check(made, range(3), "stock", lambda t: ours[t], iter(theirs))
    np.testing.assert_array_equal(made[1].checks["stock"].iou, [0.5, 0.0, math.nan])
    np.testing.assert_array_equal(made[2].checks["stock"].iou, [1.0, 1.0, math.nan])
    np.testing.assert_array_equal(made[1].checks["stock"].seen, [1, 1, math.nan])


def test_backwards_is_the_video_from_its_end() -> None:
    frames = [np.full((2, 2, 3), t, np.uint8) for t in range(5)]
    with sk.FrameSource(Backwards(frames.__getitem__, 4), threads=1) as source:
        assert [int(source.frame(t)[0, 0, 0]) for t in range(len(source))] == [3, 2, 1, 0]


@pytest.mark.parametrize("method", ["keyframe", pytest.param("stock", marks=pytest.mark.slow)])
def test_track_suggests(
    method: str, clip: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mask(tmp_path / "mask.png", (clip.masks[0] == 1).astype(np.uint8))
    given = ["--mask", tmp_path / "mask.png", "--box", "2@2:10,10,40,30", "--method", method, "--no-overlay"]
    assert track(folder, tmp_path / "plain", *given) == 0
    assert track(folder, tmp_path / "asked", *given, "--suggest-prompts", "2") == 0
    for t in range(FRAMES):
        a, b = (np.asarray(Image.open(tmp_path / run / "masks" / f"{t:05d}.png")) for run in ("plain", "asked"))
        np.testing.assert_array_equal(a, b)
    assert not (tmp_path / "plain" / "suggestions.csv").exists()
    with (tmp_path / "asked" / "suggestions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 1 <= len(rows) <= 2
    said = capsys.readouterr().out
    (run,), _ = read_page(tmp_path / "asked")
    other = "keyframe" if method == "stock" else "stock"
    for row, shown in zip(rows, run["suggestions"], strict=True):
        assert f"frame {row['frame']}, object {row['object']}: {row['reason']}" in said
        assert (int(row["frame"]), int(row["object"])) == (shown["frame"], shown["object"])
    ious = run["objects"]["1"]["scores"]
    assert {f"IoU with {other}", "IoU with backward"} <= ious.keys()
    assert ious[f"IoU with {other}"][1] == 1.0, "with one frame remembered, memories are the same"
    assert track(folder, tmp_path / "asked", *given, "--suggest-prompts", "-1") == 2
