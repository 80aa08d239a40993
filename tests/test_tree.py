"""Several paths: which go on, by hand; their masks, against those of a single path that is told its choices."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import make_predictor
from sessions import assert_equal, run

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.rules.tree import Branch, Tree

DOUBTFUL = 1e9
"""SAM 2 is never sure."""

LAST = 15


def _rate_by_chance(model: Any) -> None:
    """Rate candidates by digits of their masks: so the best path is not the one of the best mask at every frame."""

    def rate(module: Any, inputs: Any, output: Any) -> Any:
        masks, ious, tokens, score = output
        return masks, (masks.double().mean((2, 3)) * 1e3).frac().abs().to(ious), tokens, score

    model.sam_mask_decoder.register_forward_hook(rate)


def _log(*ratings: float) -> float:
    return sum(math.log(rating + 1e-5) for rating in ratings)


def _grown(*given: Any, sure: float = 2.0) -> list[tuple[int, int, tuple[int, ...]]]:
    branches = Tree(sure=sure).grow(*given)
    assert [b.score for b in branches] == sorted((b.score for b in branches), reverse=True)
    return [(branch.parent, branch.mask, branch.places) for branch in branches]


def test_which_go_on_by_hand() -> None:
    equal = [(0.0, (0, 1, 2))]
    assert Tree().grow(equal, [(0.5, 0.9, 0.8)], [2.5]) == [Branch(0, 1, _log(0.9), (0, 1, 2))]  # sure: thrice the best
    assert _grown(equal, [(0.5, 0.9, 0.8)], [-2.5]) == [(0, 1, (0, 1, 2))]  # sure that it is hidden
    assert _grown(equal, [(0.5, 0.9, 0.8)], [1.5]) == [(0, 1, (0,)), (0, 2, (1,)), (0, 0, (2,))]
    assert _grown(equal, [(0.904, 0.901, 0.3)], [1.5]) == [
        (0, 0, (0, 2)),
        (0, 2, (1,)),
    ]  # 0.90 once, then an equal path
    apart = [(_log(0.9), (0,)), (_log(0.6), (1,)), (_log(0.1), (2,))]
    ratings = [(0.9, 0.8, 0.1), (0.9, 0.2, 0.1), (0.95, 0.9, 0.9)]
    best = [(0, 0, (0,)), (0, 1, (1,)), (1, 0, (2,))]
    assert _grown(apart, ratings, [3.0, 1.0, 1.0]) == best  # some path is sure: the third ends
    assert _grown(apart, ratings, [1.0, 1.0, 1.0]) == [*best[:2], (1, 1, (2,))]  # 0.9 is there: 0.2 scores 0.12
    assert _grown(apart, [(0.7, 0.6, 0.1)] * 3, [1.0, -1.0, 1.0]) == best  # hidden: another 0.7
    same = [(0.7, 0.701, 0.699)] * 3
    assert _grown(apart, same, [1.0, 1.0, 1.0]) == [(0, 1, (0,)), (1, 1, (1,)), (2, 1, (2,))]  # of each not there
    ratings = [(0.9, 0.4, 0.9), (0.9, 0.4, 0.9)]
    for places, filled in (((0, 1), 0), ((0, 2), 1)):  # 0.9 and 0.4 of the first path; then the first place not there
        (other,) = {0, 1, 2} - set(places)
        found = _grown([(0.0, places), (_log(0.5), (other,))], ratings, [1.0, 1.0])
        assert found == ([(0, 0, (0, 2)), (0, 1, (1,))] if filled == 0 else [(0, 0, (0,)), (1, 0, (2,)), (0, 1, (1,))])
    assert _grown([(0.0, (0, 1)), (_log(0.5), (2,))], [(0.9, 0.4, 0.1), (0.9, 0.8, 0.1)], [3.0, 3.0]) == [
        (0, 0, (0, 1)), (1, 0, (2,)),
    ]  # fmt: skip


@pytest.mark.parametrize("session", ["two_objects", "both_ways", pytest.param("correction", marks=pytest.mark.slow)])
def test_one_path_is_sam2long(session: str, predictor: Any, clip: Any, clip_folder: Any) -> None:
    """So are three as long as SAM 2 is sure: to the last bit, as are the frames that it stores."""
    runs = []
    choices: list[tuple[str, dict[str, Any]]] = [
        ("sam2long", {"theta": 0.5}),
        ("sam2long_tree", {"theta": 0.5, "paths": 1, "sure": DOUBTFUL}),
        ("sam2long_tree", {"theta": 0.5, "sure": 0.0}),
    ]
    for name, how in choices:
        with sk.wrap(predictor, name, **how):
            runs.append(run(predictor, session, clip_folder, clip))
    for tree in runs[1:]:
        assert_equal(runs[0], tree, tensors=False)
        assert [r.attended for r in sk.memory_stats(tree[2][0])[1].rows] == [
            r.attended for r in sk.memory_stats(runs[0][2][0])[1].rows
        ]


@contextmanager
def _grows_noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Branch]]]:
    noted: list[list[Branch]] = []
    grow = Tree.grow

    def noting(self: Tree, *given: Any) -> list[Branch]:
        noted.append(grow(self, *given))
        return noted[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Tree, "grow", noting)
        yield noted


def _track(model: Any, folder: Any, clip: Any, reverse: bool, each: Any = None) -> list[torch.Tensor]:
    state = model.init_state(str(folder))
    start = LAST if reverse else 0
    model.add_new_mask(state, start, 1, torch.from_numpy(clip.masks[start] == 1))
    masks = []
    for t, _, logits in model.propagate_in_video(state, start, LAST, reverse):
        assert t == (start - len(masks) if reverse else len(masks))
        masks.append(logits.clone())
        if each is not None:
            each(state)
    return masks


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_the_best_path_is_a_single_one_that_is_told_its_choices(
    reverse: bool, monkeypatch: pytest.MonkeyPatch, predictor: Any, clip: Any, clip_folder: Any
) -> None:
    """Shown after the last frame, to the last bit; and the three of them are within their bounds at every frame."""
    _rate_by_chance(predictor)
    seen = []

    def bounded(state: Any) -> None:
        bank = state["output_dict_per_obj"][0][KEY]
        held = [entry for path in bank.paths for entry in path.bank.store.entries.values()]
        memories = {id(e["maskmem_features"]) for e in held if e["maskmem_features"].numel()}
        pointers = {id(e["obj_ptr"]) for e in held}
        assert len(memories) <= 6 * 3
        assert len(pointers) <= 15 * 3
        assert all(len(path.bank.non_cond) <= 16 for path in bank.paths[1:])
        if bank.paths:
            assert sorted(place for path in bank.paths for place in path.places) == [0, 1, 2]
            assert bank.paths[0].bank is bank
            row = bank.stats.last
            assert row.memory.frames == 1 + len(memories) <= 1 + 6 * 3
            seen.append(len(bank.paths))

    with _grows_noted(monkeypatch) as noted, sk.wrap(predictor, "sam2long_tree", theta=0.0, sure=DOUBTFUL, lag=100):
        best = _track(predictor, clip_folder, clip, reverse)
    with _grows_noted(monkeypatch) as again, sk.wrap(predictor, "sam2long_tree", theta=0.0, sure=DOUBTFUL):
        online = _track(predictor, clip_folder, clip, reverse, bounded)
    assert again == noted
    assert max(seen) == 3
    choices, place = [], 0
    for branches in reversed(noted):
        choices.insert(0, branches[place].mask)
        place = branches[place].parent
    assert len(set(choices)) > 1, "the best path never left SAM 2's own choices"

    told = iter([None, *choices])

    def tell(module: Any, inputs: Any, output: Any) -> Any:
        masks, ious, tokens, score = output
        if ious.shape[1] == 1 or (choice := next(told)) is None:
            return None
        return masks, torch.nn.functional.one_hot(torch.tensor([choice]), 3).to(ious), tokens, score

    with sk.wrap(predictor, "sam2long", theta=0.0):
        hook = predictor.sam_mask_decoder.register_forward_hook(tell)
        single = _track(predictor, clip_folder, clip, reverse)
        hook.remove()
    assert next(told, None) is None
    assert all(torch.equal(a, b) for a, b in zip(best, single, strict=True))
    assert torch.equal(online[-1], best[-1])
    assert not all(torch.equal(a, b) for a, b in zip(online, best, strict=True)), "showing them late changed nothing"


def test_masks_that_are_shown_late_count(predictor: Any, clip: Any, clip_folder: Any) -> None:
    """Bytes are those of masks shown at once, and the masks of other paths that no entry holds."""
    _rate_by_chance(predictor)
    found: dict[int, list[tuple[int, int]]] = {}
    for lag in (0, 10):

        def note(state: Any, lag: int = lag) -> None:
            bank = state["output_dict_per_obj"][0][KEY]
            stored = [entry["pred_masks"] for path in bank.paths for entry in path.bank.store.entries.values()]
            late = {id(m): m.nbytes for path in bank.paths[1:] for m in path.masks.values()}
            known = {id(m) for m in (*stored, *(m for path in bank.paths[:1] for m in path.masks.values()))}
            row = bank.stats.last
            if row is not None:
                extra = sum(nbytes for key, nbytes in late.items() if key not in known)
                found.setdefault(lag, []).append((row.memory.nbytes + row.host_nbytes, extra))

        with sk.wrap(predictor, "sam2long_tree", theta=0.8, sure=DOUBTFUL, lag=lag):
            _track(predictor, clip_folder, clip, False, note)
    (at_once, none), (late, extra) = found[0][-1], found[10][-1]
    assert none == 0
    assert extra > 0
    assert late - at_once == extra


def test_a_prompt_in_the_middle_leaves_one_path(predictor: Any, clip: Any, clip_folder: Any) -> None:
    with sk.wrap(predictor, "sam2long_tree", sure=DOUBTFUL):
        state = predictor.init_state(str(clip_folder))
        for obj_id in (1, 2):
            predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
        for _ in predictor.propagate_in_video(state, max_frame_num_to_track=8):
            pass
        banks = [output_dict[KEY] for output_dict in state["output_dict_per_obj"].values()]
        assert [len(bank.paths) for bank in banks] == [3, 3]
        copied = copy.deepcopy(state)
        predictor.add_new_mask(state, 9, 2, torch.from_numpy(clip.masks[9] == 2))
        predictor.propagate_in_video_preflight(state)
        assert [len(bank.paths) for bank in banks] == [3, 0]
        after = [m.clone() for _, _, m in predictor.propagate_in_video(copied, 9, 6)]
        other = copied["output_dict_per_obj"][0][KEY]
        assert other is not banks[0]
        assert len(other.paths) == 3
        assert all(masks.isfinite().all() for masks in after)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"tree": sk.Tree}, "give Tree\\(\\) or None, not its class"),
        ({"tree": sk.Tree(), "verify": sk.Backward()}, "does not go together with verify=Backward"),
        ({"tree": sk.Tree(), "store": "all"}, "does not go together with store='all'"),
        ({"tree": sk.Tree(), "choice": sk.Kalman()}, "does not go together with choice=Kalman"),
        ({"tree": sk.Tree(lag=2), "keep_masks": False}, "shows masks of past frames: choose keep_masks=True"),
    ],
)
def test_what_does_not_go_together(choices: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        sk.make_method("window", **choices)


def test_numbers_are_checked() -> None:
    for wrong in ({"paths": 0}, {"sure": -1}, {"lag": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            sk.Tree(**wrong)  # type: ignore[arg-type]


def test_a_recording_has_the_masks_of_the_best_path(clip: Any, clip_folder: Any) -> None:
    """Their predicted IoUs are those in the rows."""
    model = make_predictor()
    with sk.wrap(model, "sam2long_tree", sure=DOUBTFUL):
        state = model.init_state(str(clip_folder))
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        with sk.record(model, state) as recording:
            shown = [masks[0, 0] > 0 for _, _, masks in model.propagate_in_video(state)]
    rows = sk.memory_stats(state)[1].rows
    steps = [step for step in recording.steps if step.frame_idx]
    assert [step.scores["predicted_iou"] for step in steps] == [row.scores["predicted_iou"] for row in rows]
    assert [step.scores["object_score"] for step in steps] == [row.scores["object_score"] for row in rows]
    assert len(shown) == 24


def test_objects_that_go_or_come_while_masks_are_late(clip: Any) -> None:
    """The loop ends where none is left; one whose prompt was not taken in yet is not there on the last frames."""
    model = make_predictor(64)
    frames = clip.frames[:6, ::2, ::2]

    def seen(at: int, act: Any) -> list[tuple[int, int, int]]:
        state = sk.init_state(model, frames)
        found = []
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0, ::2, ::2] == 1))
        for t, obj_ids, masks in model.propagate_in_video(state):
            found.append((t, len(obj_ids), len(masks)))
            if t == at:
                act(state)
        return found

    def add(state: Any) -> None:
        model.add_new_mask(state, 4, 2, torch.from_numpy(clip.masks[4, ::2, ::2] == 2))

    with sk.wrap(model, "sam2long_tree", lag=2):
        gone = [(t, 1, 1) for t in range(3)]
        assert seen(2, lambda state: model.remove_object(state, 1)) == gone
        assert seen(2, model.reset_state) == gone
        assert seen(4, add) == [*((t, 1, 1) for t in range(5)), (5, 2, 2)]
