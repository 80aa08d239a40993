"""Pictures are drawn from real runs; their pixels are checked where it matters."""

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memories import memory

import sam2_keyframe as sk
from sam2_keyframe import EveryNth, MaskIoU, MemoryStats, make_method, memory_stats, wrap
from sam2_keyframe.app import pictures
from sam2_keyframe.app.output import palette, write_mask
from sam2_keyframe.replay import replay


@pytest.fixture(scope="module")
def stats(predictor_factory: Any, clip: Any, clip_folder: Path) -> dict[int, MemoryStats]:
    predictor = predictor_factory()
    state = predictor.init_state(str(clip_folder))
    with (
        torch.inference_mode(),
        wrap(predictor, memory((MaskIoU() > -1) & EveryNth(4))),
    ):
        for obj_id in (1, 2):
            predictor.add_new_mask(state, 0, obj_id, clip.masks[0] == obj_id)
        for _ in predictor.propagate_in_video(state):
            pass
    return memory_stats(state)


def test_overlay_tints_inside_and_leaves_outside_alone() -> None:
    frame = np.full((40, 60, 3), 100, np.uint8)
    masks = np.zeros((40, 60), int)
    masks[15:35, 10:30] = 3
    drawn = np.asarray(pictures.overlay(frame, masks, opacity=0.5)).astype(int)
    assert (drawn[masks == 0] == 100).all()
    assert (drawn[15, 10:30] == pictures.COLOURS[2]).all(), "the outline is opaque"
    wanted = (100 + np.array(pictures.COLOURS[2])) / 2
    assert np.abs(drawn[25, 20] - wanted).max() <= 1
    assert (frame == 100).all(), "the frame itself is not painted on"


def test_overlay_enlarges_and_writes_caption_stamp_and_ids() -> None:
    frame = np.full((64, 96, 3), 128, np.uint8)
    masks = np.zeros((64, 96), np.uint8)
    masks[20:50, 5:40], masks[20:50, 50:90] = 1, 2
    plain = np.asarray(pictures.overlay(frame, masks, scale=3))
    assert plain.shape == (192, 288, 3)
    written = np.asarray(pictures.overlay(frame, masks, scale=3, caption="frame 7", stamp="demo model"))
    assert (written[:20] != plain[:20]).any(), "no caption"
    assert (written[-20:] != plain[-20:]).any(), "no stamp"
    assert (written[60:120] == plain[60:120]).all()


@pytest.mark.parametrize("masks", [np.zeros((3, 4), int), np.zeros((5, 4), int)])
def test_overlay_of_an_empty_mask_or_another_size(masks: np.ndarray) -> None:
    frame = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    if masks.shape == (3, 4):
        assert (np.asarray(pictures.overlay(frame, masks)) == frame).all()
    else:
        with pytest.raises(ValueError, match=r"\(5, 4\).*\(3, 4\).*frame's size"):
            pictures.overlay(frame, masks)


def test_label_map_gives_overlaps_to_the_higher_logit() -> None:
    logits = torch.tensor([[[[-1.0, 2.0, 2.0]]], [[[-1.0, 1.0, 5.0]]]])
    assert pictures.label_map([4, 9], logits).tolist() == [[0, 4, 9]]


def test_timeline_draws_one_object_and_several(stats: dict[int, MemoryStats]) -> None:
    both = np.asarray(pictures.timeline(stats, method=make_method("keyframe", change=0.05), title="two"))
    one = np.asarray(pictures.timeline(stats[1]))
    assert both.shape == one.shape
    assert (both != one).any()
    with pytest.raises(ValueError, match="track at least one frame"):
        pictures.timeline(MemoryStats())


def test_timeline_says_when_rows_are_missing(stats: dict[int, MemoryStats], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.asarray(pictures.timeline(stats[1]))
    monkeypatch.setattr(stats[1], "frames", 5000)
    assert (np.asarray(pictures.timeline(stats[1])) != whole).any()


def shown(stats: MemoryStats, clip: Any, **options: Any) -> set[int]:
    """Return the frames that a filmstrip asks for."""
    asked: set[int] = set()

    def frame(t: int) -> np.ndarray:
        asked.add(t)
        return np.asarray(clip.frames[t])

    pictures.filmstrip(stats, frame, **options)
    return asked


def test_filmstrip_shows_the_frames_that_were_attended_to(stats: dict[int, MemoryStats], clip: Any) -> None:
    rows = {row.frame_idx: row for row in stats[1].rows}
    now = max(rows)
    assert set(rows[now].attended) != {0, *range(now - 6, now)}, "the method must differ from SAM 2 alone here"
    assert shown(stats[1], clip, moments=[now]) == {now, 0, *range(now - 6, now), *rows[now].attended}


@pytest.fixture(scope="module")
def corrected(predictor_factory: Any, clip: Any, clip_folder: Path) -> dict[int, MemoryStats]:
    """Object 1 is prompted again on frame 5, when it is reached; object 2 is not."""
    predictor = predictor_factory()
    state = predictor.init_state(str(clip_folder))
    with torch.inference_mode(), wrap(predictor, "window"):
        for obj_id in (1, 2):
            predictor.add_new_mask(state, 0, obj_id, clip.masks[0] == obj_id)
        list(predictor.propagate_in_video(state, max_frame_num_to_track=4))
        predictor.add_new_mask(state, 5, 1, clip.masks[5] == 1)
        list(predictor.propagate_in_video(state, start_frame_idx=5, max_frame_num_to_track=4))
    return memory_stats(state)


@pytest.mark.parametrize("prompts", [[0, 5], None])
def test_filmstrip_shows_no_prompt_before_it_is_given(
    corrected: dict[int, MemoryStats], clip: Any, prompts: list[int] | None
) -> None:
    rows = {row.frame_idx: row for row in corrected[1].rows}
    for now, held in ((2, {0, 1}), (7, {0, *range(1, 7)})):
        assert set(rows[now].attended) == held
        assert shown(corrected[1], clip, moments=[now], prompts=prompts) == {now, *held}


def test_filmstrip_shows_a_prompt_ahead_that_is_given(predictor_factory: Any, clip: Any, clip_folder: Path) -> None:
    for prompts, reverse, now in (((0, 5), False, 2), ((9, 4), True, 7)):
        predictor = predictor_factory()
        state = predictor.init_state(str(clip_folder))
        with torch.inference_mode(), wrap(predictor, "window"):
            for t in prompts:
                predictor.add_new_mask(state, t, 1, clip.masks[t] == 1)
            list(predictor.propagate_in_video(state, prompts[0], max_frame_num_to_track=4, reverse=reverse))
        between = range(now + 1, 9) if reverse else range(1, now)
        assert shown(memory_stats(state)[1], clip, moments=[now], prompts=prompts) == {now, *prompts, *between}
    assert [pictures._note(None, 4, age, True) for age in (3, -3)] == ["frame 4, 3 ago", "frame 4, 3 ahead"]


@pytest.mark.parametrize("name", ["stock", "window", "memory"])
def test_an_object_holds_what_it_held_while_it_is_prompted(corrected: dict[int, MemoryStats], name: str) -> None:
    first, second = ({row.frame_idx: getattr(row, name) for row in corrected[o].rows} for o in (1, 2))
    assert 5 not in first
    total = pictures._summed(corrected, name)
    assert list(total) == list(range(1, 10))
    assert total[4] == (first[4].nbytes + second[4].nbytes, first[4].tokens + second[4].tokens)
    assert total[5] == (first[4].nbytes + second[5].nbytes, first[4].tokens + second[5].tokens)
    assert total[6] == (first[6].nbytes + second[6].nbytes, first[6].tokens + second[6].tokens)


def test_in_reverse_an_object_holds_nothing_before_it_is_there(predictor: Any, clip: Any, clip_folder: Path) -> None:
    state = predictor.init_state(str(clip_folder))
    with torch.inference_mode(), wrap(predictor, "window"):
        predictor.add_new_mask(state, 11, 1, clip.masks[11] == 1)
        list(predictor.propagate_in_video(state, 11, max_frame_num_to_track=6, reverse=True))
        predictor.add_new_mask(state, 5, 2, clip.masks[5] == 2)
        list(predictor.propagate_in_video(state, 5, max_frame_num_to_track=3, reverse=True))
    stats = memory_stats(state)
    alone = {row.frame_idx: row.memory for row in stats[1].rows}
    total = pictures._summed(stats, "memory")
    for t in range(6, 11):
        assert total[t] == (alone[t].nbytes, alone[t].tokens)
    assert total[3][0] > alone[6].nbytes
    first = stats[1].rows[0].frame_idx
    notes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = pictures._note
        patch.setattr(pictures, "_note", lambda *given: notes.append(real(*given)) or notes[-1])
        pictures.filmstrip(stats[1], clip.frames.__getitem__, moments=[first], prompts=[11])
    assert notes == ["frame 11, 1 ago"] * 2


def test_filmstrip_with_masks_marks_prompts_and_keyframes(stats: dict[int, MemoryStats], clip: Any) -> None:
    frames = clip.frames.__getitem__
    bare = np.asarray(pictures.filmstrip(stats[1], frames, moments=[20]))
    tinted = np.asarray(pictures.filmstrip(stats[1], frames, moments=[20], masks=clip.masks.__getitem__))
    assert bare.shape == tinted.shape
    assert (bare != tinted).any()
    assert (bare == pictures.PROMPTED).all(-1).sum() > 500
    assert (bare == pictures.KEYFRAME).all(-1).sum() > 500


def test_filmstrip_chooses_telling_moments_or_refuses_unknown_ones(stats: dict[int, MemoryStats], clip: Any) -> None:
    chosen = pictures._moments(list(stats[1].rows))
    assert len(chosen) == 3
    assert chosen[-1] == stats[1].rows[-1].frame_idx
    with pytest.raises(ValueError, match=r"moments=\[99\].*choose from 1 to 23"):
        pictures.filmstrip(stats[1], clip.frames.__getitem__, moments=[99])


def test_moments_are_where_the_object_comes_back(stats: dict[int, MemoryStats]) -> None:
    rows = list(stats[1].rows)
    seen = [{**row.scores, "object_score": -1.0 if 8 <= row.frame_idx < 12 else 1.0} for row in rows]
    for row, scores in zip(rows, seen, strict=True):
        object.__setattr__(row, "scores", scores)
    assert 12 in pictures._moments(rows)


def test_pictures_without_pillow_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(pictures, "need", pictures.need)
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'sam2-keyframe\[video\]'"):
        pictures.overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int))


def test_masks_are_written_in_the_davis_palette(tmp_path: Path) -> None:
    from PIL import Image

    ids = np.array([[0, 1, 2], [3, 21, 255]])
    write_mask(tmp_path / "m.png", ids)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == ids).all()
        colours = np.array(image.getpalette()).reshape(-1, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 21: (128, 64, 128)}
    assert {i: tuple(colours[i]) for i in known} == known
    assert len({tuple(colour) for colour in colours}) == 256
    assert len(palette()) == 768
    assert not math.isnan(colours.mean())


def test_a_keyframe_held_is_one_thing_everywhere(predictor_factory: Any, clip: Any, clip_folder: Path) -> None:
    """Handle, statistics and filmstrip: those of the rolling buffer as the frame was read for."""
    predictor, seen = predictor_factory(), []
    state = predictor.init_state(str(clip_folder))
    method = memory(EveryNth(2), n=2, others=sk.Others(3))
    with torch.inference_mode(), wrap(predictor, method) as handle:
        predictor.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        for t, *_ in predictor.propagate_in_video(state):
            if t:
                row = memory_stats(state)[1].rows[-1]
                became = [s for s in range(2, t - 1, 2)]  # what entered the buffer: not the newest frame
                assert row.keyframes == tuple(became[-2:])
                assert set(row.keyframes) <= set(row.attended)
                seen.append(f"{len(row.keyframes)} keyframes held" in repr(handle))
    assert len(seen) > 15
    assert all(seen)
    stats, blue = memory_stats(state)[1], []
    with pytest.MonkeyPatch.context() as patch:
        real = pictures._thumbnail
        patch.setattr(pictures, "_thumbnail", lambda *a: blue.append(a[3] == pictures.KEYFRAME) or real(*a))
        pictures.filmstrip(stats, clip.frames.__getitem__, moments=[20])
    assert sum(blue) == 2


BOUND = make_method("keyframe")


def many(count: int, hidden: range = range(0)) -> dict[int, MemoryStats]:
    """Return statistics of real runs over given masks: objects in a row, the last one hidden for a while."""
    masks = np.zeros((16, 40, 8 * count), bool)
    given = {}
    for obj_id in range(1, count + 1):
        given[obj_id] = masks.copy()
        for t in range(16):
            if obj_id < count or t not in hidden:
                given[obj_id][t, 2 + t : 10 + 2 * t, 8 * obj_id - 7 : 8 * obj_id - 2] = True
    return replay(None, given, "keyframe").stats


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 12, 13, 118])
def test_timelines_of_many_objects_name_twelve_and_count_the_rest(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    real = pictures.picture
    monkeypatch.setattr(pictures, "picture", lambda figure: figures.append(figure) or real(figure))
    image = pictures.timeline(many(count, range(5, 9)), method=BOUND, title="a title of many words " * 9)
    (figure,) = figures
    legend = (figure.legends or [figure.axes[0].get_legend()])[0]
    texts = [text.get_text() for text in legend.get_texts()]
    named = [text for text in texts if text.startswith("object ") and "not seen" not in text]
    assert len(named) == min(count, 12)
    assert ("MaskIoU() > 0.5" in texts, f"{count - 12} more objects: not drawn" in texts) == (True, count > 12)
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= image.width
    assert box.y1 <= image.height
    colours = {line.get_color() for line in figure.axes[0].get_lines() if str(line.get_label()) in named}
    assert len(colours) == len(named), "no colour twice"


def test_absences_are_drawn_by_object(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    real = pictures.picture
    monkeypatch.setattr(pictures, "picture", lambda figure: figures.append(figure) or real(figure))
    pictures.timeline(many(3, range(5, 9)), method=BOUND)
    pictures.timeline(many(3), method=BOUND)
    with_one = figures[0]
    assert [len(each.axes) for each in figures] == [4, 3]
    absent = with_one.axes[1]
    assert [label.get_text() for label in absent.get_yticklabels()] == ["3"]
    spans = [path.get_extents().intervalx for path in absent.collections[0].get_paths()]
    assert [tuple(span) for span in spans] == [(t - 0.5, t + 0.5) for t in range(5, 9)]
    solid = next(line for line in with_one.axes[0].get_lines() if str(line.get_label()).startswith("object 3"))
    assert [t for t, value in zip(*solid.get_data(), strict=True) if math.isnan(value)] == [5, 6, 7, 8]


def test_tiles_are_cropped_around_small_objects(stats: dict[int, MemoryStats]) -> None:
    """An object of 12 x 8 pixels in 4K fills as much of a tile as its surroundings leave, and large ones are whole."""
    frame = np.zeros((432, 768, 3), np.uint8)

    def small(t: int) -> np.ndarray:
        mask = np.zeros(frame.shape[:2], int)
        mask[40 + 10 * t : 100 + 10 * t, 20 * t : 20 * t + 60] = t != 3
        return mask

    view = pictures._views(small, range(12))
    views = {t: view(t) for t in range(12)}
    sizes = {(right - left, bottom - top) for left, top, right, bottom in views.values()}
    assert len(sizes) == 1, "one scale"
    ((width, height),) = sizes
    assert height < 0.35 * 432
    assert abs(width / height - 768 / 432) < 0.02
    for t, (left, top, right, bottom) in views.items():
        rows, columns = np.nonzero(small(t if t != 3 else 2))
        assert left <= columns.min()
        assert columns.max() < right
        assert top <= rows.min()
        assert rows.max() < bottom
        assert left >= 0
        assert top >= 0
    assert pictures._views(lambda t: np.ones((4, 6), int), [1, 2])(1) is None
    assert pictures._views(lambda t: np.zeros((4, 6), int), [1, 2])(1) is None
    strip = np.asarray(pictures.filmstrip(stats[1], lambda t: frame, masks=small, moments=[11]))
    whole = np.asarray(pictures.filmstrip(stats[1], lambda t: frame, moments=[11]))
    assert strip.shape == whole.shape
    assert (strip != whole).mean() > 0.02
