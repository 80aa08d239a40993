"""The hosts of transformers: stock and the window equal the unwrapped model, and nothing is left behind."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers_models
from on_transformers import (
    KINDS,
    SESSIONS,
    Video,
    add_points,
    assert_lively,
    assert_seen_equal,
    held_bytes,
    new_session,
    run,
    start,
    stored,
    track,
)

import sam2_keyframe as sk
from sam2_keyframe.patches import driver_of
from sam2_keyframe.patches import transformers as patch
from sam2_keyframe.patches.bounded import PixelWindow, TrackedFrames
from sam2_keyframe.synthetic import make_clip

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
MODELS = {"sam2": ("sam2_video", 64, {}), "sam3": ("sam3_tracker", 112, HALF), "edgetam": ("edgetam", 64, {})}
ONCE = [name for name in SESSIONS if name not in ("streaming_corrected", "correction", "both_ways", "over_again")]
"""Sessions that never go back: there the window is lossless."""
MIXED = ("streaming_corrected", "late_object", "several_prompts", "correction")
"""Sessions that prompt by masks and by clicks, on which transformers' EdgeTAM fails: there clicks alone."""


FAST = {
    "sam2": ("one_object", "three_objects", "streaming", "correction", "late_object"),
    "sam3": ("three_objects",),
    "edgetam": ("streaming",),
}
"""Sessions that every run of the tests goes through; the others are slow."""


def cases(sessions: Any) -> list[Any]:
    """Return every model with every session."""
    return [
        pytest.param(name, session, marks=() if session in FAST[name] else pytest.mark.slow)
        for name in MODELS
        for session in sessions
    ]


def of_each_model(*fast: str) -> Any:
    """Parametrize over the models; all but those named are slow."""
    names = [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in MODELS]
    return pytest.mark.parametrize("name", names)


def video_for(name: str, clicks: bool = False) -> Video:
    _, size, normalisation = MODELS[name]
    return Video(make_clip("occlusion", seed=3, frames=20, size=size, objects=3), clicks, **normalisation)


@pytest.fixture(scope="module")
def models() -> Any:
    """Models by name, made at their first use."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            maker, size, _ = MODELS[name]
            made[name] = getattr(transformers_models, maker)(size)
        return made[name]

    return get


@pytest.fixture(scope="module")
def unwrapped(models: Any) -> Any:
    """Runs of the unwrapped models, by model and session."""
    runs: dict[Any, Any] = {}

    def get(name: str, session: str) -> Any:
        key = name, session
        if key not in runs:
            video = video_for(name, name == "edgetam" and session in MIXED)
            runs[key] = run(models(name), session, video)
            assert_lively(runs[key][0])
        return runs[key]

    return get


def wrapped_run(models: Any, name: str, session: str, method: Any, **how: Any) -> Any:
    video = video_for(name, name == "edgetam" and session in MIXED)
    with sk.wrap(models(name), method):
        return run(models(name), session, video, **how)


def assert_stored_equal(ours: Any, theirs: Any) -> None:
    for one, two in zip(ours, theirs, strict=True):
        left, right = stored(one), stored(two)
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]), key


@pytest.mark.parametrize(("name", "session"), cases(SESSIONS))
def test_stock_is_identical(name: str, session: str, models: Any, unwrapped: Any) -> None:
    seen, sessions = wrapped_run(models, name, session, "stock")
    assert_seen_equal(seen, unwrapped(name, session)[0])
    for one in sessions:
        sk.forget(one)
    assert_stored_equal(sessions, unwrapped(name, session)[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "session"), cases(ONCE))
def test_window_is_lossless_in_one_sweep(name: str, session: str, models: Any, unwrapped: Any) -> None:
    seen, sessions = wrapped_run(models, name, session, "window")
    assert_seen_equal(seen, unwrapped(name, session)[0])
    assert held_bytes(sessions[-1]) < held_bytes(unwrapped(name, session)[1][-1])


@pytest.mark.parametrize(
    "session", ["streaming", *(pytest.param(one, marks=pytest.mark.slow) for one in ("three_objects", "correction"))]
)
def test_stock_is_identical_under_autocast(session: str, models: Any) -> None:
    runs = []
    for method in (None, "stock"):
        with torch.autocast("cpu", torch.bfloat16):
            runs.append(
                (
                    wrapped_run(models, "sam2", session, method)
                    if method
                    else run(models("sam2"), session, video_for("sam2"))
                )[0]
            )
    assert_lively(runs[0])
    assert_seen_equal(*runs)


def test_stock_is_identical_in_bfloat16() -> None:
    model, video = transformers_models.sam2_video(64).to(torch.bfloat16), video_for("sam2")
    runs = []
    for method in (None, "stock", "keyframe"):
        if method:
            sk.wrap(model, method)
        seen: Any = []
        session = start(model, video, (1, 2), dtype=torch.bfloat16)
        track(model, session, seen, 0, 8)
        runs.append(seen)
    assert_seen_equal(runs[0], runs[1])
    assert all(masks.isfinite().all() for *_, masks, _ in runs[2])


# -- negative controls ----------------------------------------------------------------------------------------------


def _leave_one_out(pairs: Any, pointers: Any) -> Any:
    return pairs[:-1], pointers


def _swap_offsets(pairs: Any, pointers: Any) -> Any:
    if len(pairs) < 3:
        return pairs, pointers
    (one, first), (two, second) = pairs[-2:]
    return [*pairs[:-2], (two, first), (one, second)], pointers


def _drop_pointer(pairs: Any, pointers: Any) -> Any:
    return pairs, (pointers[0][1:], pointers[1][1:], pointers[2])


def _shift_distances(pairs: Any, pointers: Any) -> Any:
    return pairs, ([distance + 1 for distance in pointers[0]], *pointers[1:])


@pytest.mark.slow
@pytest.mark.parametrize("fault", [_leave_one_out, _swap_offsets, _drop_pointer, _shift_distances])
@of_each_model("sam2")
def test_a_fault_in_what_is_read_shows(
    name: str, fault: Any, monkeypatch: pytest.MonkeyPatch, models: Any, unwrapped: Any
) -> None:
    """Were what is read wrong in any one point, the tests above would fail."""

    class Faulty:
        @staticmethod
        def get() -> Any:
            shown = SHOWN.get()
            return None if shown is None else fault(*shown)

        set, reset = patch.SHOWN.set, patch.SHOWN.reset

    SHOWN = patch.SHOWN
    monkeypatch.setattr(patch, "SHOWN", Faulty)
    with pytest.raises(AssertionError, match=r"masks differ|scores differ"):
        assert_seen_equal(wrapped_run(models, name, "one_object", "stock")[0], unwrapped(name, "one_object")[0])


# -- doing and undoing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["keyframe", "compact", *(pytest.param(one, marks=pytest.mark.slow) for one in ("stock", "dam4sam"))]
)
@of_each_model("sam2")
def test_nothing_is_left(name: str, method: str, models: Any) -> None:
    model = models(name)
    if name == "edgetam" and method == "compact":
        pytest.skip("EdgeTAM's memories have no grid to be foveated on")
    attributes = dict(vars(model))
    modules = {part: dict(vars(module)) for part, module in model.named_modules() if part}
    state = list(model.state_dict())
    changes = {"attend": sk.Foveated(0.2, 2)} if method == "compact" else {}
    handle = sk.wrap(model, method, **changes)
    session, plain = new_session(model, None), new_session(model, None)
    video = video_for(name)
    video.prompt(session, 0, 1)
    for frame in video.frames[:9]:
        model(inference_session=session, frame=frame)
    handle.unwrap()
    assert dict(vars(model)) == attributes
    for part, module in model.named_modules():
        if part:
            left = {k: v for k, v in vars(module).items() if k != "_forward_hooks"}
            assert left.keys() == {k for k in modules[part] if k != "_forward_hooks"}
            assert not module._forward_hooks
    assert list(model.state_dict()) == state
    assert sk.memory_stats(session)[1].frames == 8  # the statistics stay, until
    sk.forget(session)
    assert sk.memory_stats(session) == {}
    assert vars(session).keys() == vars(plain).keys()
    assert type(session.processed_frames) is dict
    assert len(session.processed_frames) == 9
    assert type(session.frames_tracked_per_obj[0]) is dict
    assert session.frames_tracked_per_obj[0] == {t: {"reverse": False} for t in range(1, 9)}
    assert session.output_dict_per_obj[0].keys() == set(KINDS)
    wanted = {"pred_masks", "object_pointer", "object_score_logits", "maskmem_features", "maskmem_pos_enc"}
    for kind in KINDS:
        for entry in session.output_dict_per_obj[0][kind].values():
            assert set(entry) - {"high_res_masks"} == wanted
            assert entry["object_pointer"].ndim == 3
            assert entry["maskmem_features"].ndim == 3
    for frame in video.frames[9:12]:  # and the model goes on by itself
        assert model(inference_session=session, frame=frame).pred_masks.isfinite().all()
    assert sorted(session.processed_frames) == list(range(12))


@pytest.mark.parametrize(
    "session",
    [
        "streaming",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("late_object", "chunks", "reset", "two_sessions")),
    ],
)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_wrapping_in_the_middle(session: str, part: int, models: Any, unwrapped: Any) -> None:
    """Before the prompts, after them, and mid-video: what is stored is adopted; another method is replaced."""
    model = models("sam2")

    def between(now: int) -> None:
        if now == part:
            sk.wrap(model, "stock")

    try:
        seen, _ = run(model, session, video_for("sam2"), between)
    finally:
        sk.unwrap(model)
    assert_seen_equal(seen, unwrapped("sam2", session)[0])


@pytest.mark.slow
@of_each_model("sam2", "edgetam")
def test_wrapping_again_in_the_middle(name: str, models: Any, unwrapped: Any) -> None:
    """Stock goes on from what the window left, itself or after the model went on alone; and `forget` starts anew."""
    model = models(name)
    for methods in ({0: "window", 1: "stock"}, {0: "window", 1: None, 2: "window"}, {0: "window", 2: "forget"}):

        def between(now: int, methods: Any = methods) -> None:
            if methods.get(now, "") is None:
                sk.unwrap(model)
            elif methods.get(now) in ("window", "stock"):
                sk.wrap(model, methods[now])

        try:
            seen: Any = []
            parts = SESSIONS["chunks"](model, video_for(name), seen)
            between(0)
            for part, session in enumerate(parts, 1):
                between(part)
                if methods.get(part) == "forget":
                    sk.forget(session)
        finally:
            sk.unwrap(model)
        assert_seen_equal(seen, unwrapped(name, "chunks")[0])


@of_each_model("sam2", "edgetam")
def test_unwrapping_in_the_middle_of_the_window(name: str, models: Any, unwrapped: Any) -> None:
    """The window left what the model reads next, in its own layout."""
    model = models(name)

    def between(now: int) -> None:
        (sk.wrap(model, "window") if now == 0 else sk.unwrap(model)) if now in (0, 2) else None

    seen, _ = run(model, "chunks", video_for(name), between)
    assert_seen_equal(seen, unwrapped(name, "chunks")[0])


def test_a_wrapped_model_is_not_copied_and_its_sessions_are(models: Any) -> None:
    model, video = models("sam2"), video_for("sam2")
    with sk.wrap(model, "keyframe"):
        session = start(model, video, (1, 2))
        track(model, session, [], 0, 9)
        again = copy.deepcopy(session)
        with pytest.raises(RuntimeError, match="cannot be copied"):
            copy.deepcopy(model)
        runs: Any = [], []
        for seen, one in zip(runs, (session, again), strict=True):
            track(model, one, seen, 10, 6)
    assert_seen_equal(*runs)
    assert [len(stats.rows) for stats in sk.memory_stats(again).values()] == [16, 16]


def test_two_sessions_in_two_threads(models: Any) -> None:
    model, video = models("sam2"), video_for("sam2")
    alone: dict[int, Any] = {}
    together: dict[int, Any] = {}

    def follow(obj_id: int, into: dict[int, Any]) -> None:
        seen: Any = []
        track(model, start(model, video, (obj_id,)), seen, 0, 8)
        into[obj_id] = seen

    with sk.wrap(model, "samurai"):
        for obj_id in (1, 2):
            follow(obj_id, alone)
        threads = [threading.Thread(target=follow, args=(obj_id, together)) for obj_id in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for obj_id in (1, 2):
        assert_seen_equal(alone[obj_id], together[obj_id])


# -- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["keyframe", *(pytest.param(one, marks=pytest.mark.slow) for one in ("window", "compact"))]
)
@of_each_model("sam2")
def test_everything_is_bounded_in_a_stream(name: str, method: str, models: Any) -> None:
    if name == "edgetam" and method == "compact":
        pytest.skip("EdgeTAM's memories have no grid to be foveated on")
    model, video = models(name), video_for(name)
    sizes = []
    changes = {"attend": sk.Foveated(0.2, 2)} if method == "compact" else {}
    with sk.wrap(model, method, **changes):
        session = new_session(model, None)
        for obj_id in (1, 2):
            video.prompt(session, 0, obj_id)
        for t in range(60):
            model(inference_session=session, frame=video.frames[t % 20])
            sizes.append(held_bytes(session))
        assert max(sizes[30:]) <= 1.15 * max(sizes[:30])  # keyframes may still be to come; without bounds it doubles
        assert isinstance(session.processed_frames, PixelWindow)
        assert sorted(session.processed_frames.keys()) == [58, 59]
        assert session.num_frames == 60
        encodings = set()
        for obj_idx, output_dict in session.output_dict_per_obj.items():
            tracked = session.frames_tracked_per_obj[obj_idx]
            assert isinstance(tracked, TrackedFrames)
            assert list(tracked) == list(range(1, 60))
            assert len(tracked._frames[False]._runs) == 1
            assert len(output_dict["non_cond_frame_outputs"]) <= 15 + 7
            for kind in KINDS:
                for entry in output_dict[kind].values():
                    assert "high_res_masks" not in entry
                    if entry["maskmem_features"].numel():
                        encodings.add(entry["maskmem_pos_enc"][-1].data_ptr())
                    for tensor in (entry["maskmem_features"], entry["obj_ptr"], entry["pred_masks"]):
                        assert tensor.untyped_storage().nbytes() == tensor.nbytes  # no view of a batch
        assert len(encodings) == 1
    stats = sk.memory_stats(session)
    assert set(stats) == {1, 2}
    for row in (stats[1].rows[-1], stats[2].rows[-1]):
        assert row.memory.nbytes < row.stock.nbytes / 4


@pytest.mark.parametrize("name", ["sam2", "edgetam"])
def test_the_statistics_say_what_the_model_alone_would_hold_and_read(name: str, models: Any, unwrapped: Any) -> None:
    _, sessions = unwrapped(name, "one_object")
    alone = held_bytes(sessions[0])
    _, ours = wrapped_run(models, name, "one_object", "window")
    row = sk.memory_stats(ours[0])[1].rows[-1]
    assert row.stock.nbytes == pytest.approx(alone, rel=0.01)
    assert row.memory.tokens == row.stock.tokens == row.window.tokens


@of_each_model("sam2")
@pytest.mark.parametrize(
    "session", ["several_prompts", *(pytest.param(one, marks=pytest.mark.slow) for one in ("reverse", "streaming"))]
)
def test_tokens_are_those_that_are_attended_to(name: str, session: str, models: Any) -> None:
    model, read = models(name), []
    hook = model.memory_attention.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["memory"].shape[0]), with_kwargs=True
    )
    _, sessions = wrapped_run(models, name, session, "keyframe")
    hook.remove()
    told = [row.memory.tokens for stats in sk.memory_stats(sessions[0]).values() for row in stats.rows]
    assert sorted(told) == sorted(read[-len(told) :])


def test_a_whole_video_leaves_where_it_is_allowed_to(models: Any, unwrapped: Any) -> None:
    model, video = models("sam2"), video_for("sam2")
    with sk.wrap(model, "window"):
        session = start(model, video, (1, 2))
        sk.keep_frames(session, 3)
        seen: Any = []
        track(model, session, seen, 0, 12)
        assert sorted(session.processed_frames.keys()) == [10, 11, 12, *range(13, 20)]
        with pytest.raises(RuntimeError, match=r"pixels of frame 4 have left.*keep_frames"):
            model(inference_session=session, frame_idx=4)
    plain: Any = []
    track(model, start(model, video, (1, 2)), plain, 0, 12)
    assert_seen_equal(seen, plain)


@pytest.mark.parametrize(
    ("session", "n", "error"), [(None, 2, TypeError), ("new", 0, ValueError), ("new", True, ValueError)]
)
def test_keep_frames_checks_what_it_is_given(session: Any, n: Any, error: type[Exception], models: Any) -> None:
    given = new_session(models("sam2"), None) if session else {"images": []}
    with pytest.raises(error, match=r"no session of transformers|whole number"):
        sk.keep_frames(given, n)


def test_a_corrected_frame_is_held_and_shown_again(models: Any) -> None:
    model, video = models("sam2"), video_for("sam2")
    with sk.wrap(model, sk.KeyframeMemory(sk.Recent(1), sk.Keyframes(2, ~sk.Always()), sk.Others(3, ~sk.Always()))):
        session, seen = start(model, video, (1, 2)), []
        track(model, session, seen, 0, 10)
        add_points(session, 8, 1, [video.click(8, 1), [4.0, 4.0]], [1, 0])
        corrected = model(inference_session=session, frame_idx=8)
        again: Any = []
        track(model, session, again, 0, 18)
    at_8 = next(entry for entry in again if entry[1] == 8)
    assert torch.equal(at_8[3][0], corrected.pred_masks[0])  # the first object's, not tracked over again
    assert not torch.equal(at_8[3][0], seen[8][3][0])
    rows = {row.frame_idx: row for row in sk.memory_stats(session)[1].rows}
    assert 8 in rows[18].attended  # long past the recent frames
    assert 8 not in {row.frame_idx: row for row in sk.memory_stats(session)[2].rows}[18].attended


def test_a_caller_who_wants_no_memory_encoded(models: Any) -> None:
    """transformers fails on the frame after; the frame is just not remembered here."""
    model, video = models("sam2"), video_for("sam2")
    with sk.wrap(model, "keyframe"):
        session = start(model, video)
        for t in range(8):
            output = model(inference_session=session, frame_idx=t, run_mem_encoder=t != 3)
            assert output.pred_masks.isfinite().all()
    assert all(3 not in row.attended for row in sk.memory_stats(session)[1].rows)


@pytest.mark.slow
def test_prompts_beyond_the_cap_are_found_in_their_slots(models: Any, unwrapped: Any) -> None:
    model, video = models("sam2"), video_for("sam2")
    for most in (1, 2):
        model.config.max_cond_frame_num = most
        try:
            plain, _ = run(model, "several_prompts", video)
            for method in ("stock", "window"):
                ours, _ = wrapped_run(models, "sam2", "several_prompts", method)
                assert_seen_equal(plain, ours)
        finally:
            model.config.max_cond_frame_num = -1


# -- frames that are read as they are needed ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "stock", "keyframe"])
@pytest.mark.parametrize("name", ["sam2", pytest.param("sam3", marks=pytest.mark.slow)])
def test_init_state_reads_frames_as_they_are_needed(name: str, method: str | None, models: Any) -> None:
    pytest.importorskip("PIL")
    model, video = models(name), video_for(name)
    if method:
        sk.wrap(model, method)
    try:
        runs: Any = [], []
        lazy = sk.init_state(model, video.clip.frames)
        loaded = new_session(model, video.frames)
        for seen, session in zip(runs, (lazy, loaded), strict=True):
            for obj_id in (1, 2):
                video.prompt(session, 0, obj_id)
            track(model, session, seen, 0, 12)
    finally:
        sk.unwrap(model)
    if name == "sam2":
        assert_seen_equal(*runs)
    else:  # normalised twice
        assert all(torch.allclose(a[3], b[3], atol=0.05) for a, b in zip(*runs, strict=True))
    assert len(lazy.processed_frames) == 20
    sk.keep_frames(lazy, 1)
    assert len(lazy.processed_frames) == 20


def test_a_session_is_prompted_and_driven(models: Any) -> None:
    model, video = models("sam2"), video_for("sam2")
    large = video.clip.frames.repeat(2, axis=1).repeat(2, axis=2)  # twice the model's size
    with sk.wrap(model, "keyframe"):
        driver = driver_of(model)
        session = sk.init_state(model, large)
        mask = video.mask(0, 1).repeat(2, axis=0).repeat(2, axis=1)
        _, ids, masks = driver.correct(session, 0, {1: {"mask": mask}})
        assert ids == [1]
        assert masks.shape == (1, 1, 128, 128)
        found = masks[0, 0] > 0
        assert ((found & torch.from_numpy(mask)).sum() / (found | torch.from_numpy(mask)).sum()) > 0.9
        x, y = video.click(0, 2)
        _, ids, masks = driver.correct(session, 0, {2: {"points": [[2 * x, 2 * y]], "labels": [1]}})
        assert ids == [1, 2]
        assert masks[1, 0, int(2 * y), int(2 * x)] > 0
        outputs = list(driver.track(session, 0, 5))
        assert [t for t, _, _ in outputs] == [0, 1, 2, 3, 4, 5]
    assert sk.memory_stats(session)[2].frames == 5
