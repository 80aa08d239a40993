"""Random sessions with a predictor: what a user may call, in any order, wrapped against unwrapped.

    python -m benchmarks.sessions --count 500          # writes results/sessions/sessions.json

hypothesis draws lists of the predictor's own calls: prompts and corrections, tracking forwards, backwards and in part,
several objects that come and go, clearing, resetting, two videos in turn, wrapping and unwrapping in the middle. Each
list runs four times on equal small predictors: unwrapped; under `stock`, where every mask, every error and every tensor
left behind must be the same to the last bit; and under `keyframe` as it is and with a small capacity, where no call may
fail that did not fail unwrapped, and where more spatial memories than the method has room for are neither held nor
attended to. A list that fails is reduced to the shortest one that still does, and printed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import sam2_keyframe as sk
from benchmarks._calls import FLAGS, FRAMES, Session, sessions
from benchmarks._models import shared_features
from benchmarks._session import METHODS, SIZE, Differs, Outcome, Run
from benchmarks._store import surroundings, write_text
from sam2_keyframe.synthetic import make_clip

RESULTS = Path(__file__).parent / "results" / "sessions"


class Trial:
    """Two equal predictors and two short videos to run sessions on.

    Args:
        make: Makes a predictor for 64 x 64 pixels, the same one each time.
        folder: Where the videos are written.

    Attributes:
        sessions: How many were checked.
        tally: Calls by kind, frames by run, and the errors that SAM 2 gave unwrapped.
    """

    def __init__(self, make: Callable[[], Any], folder: Path) -> None:
        from PIL import Image

        self.plain, self.ours = make(), make()
        self.sessions = 0
        self.tally: dict[str, Counter[str]] = {"calls": Counter(), "frames": Counter(), "errors": Counter()}
        clips = [make_clip(each, seed=3, frames=FRAMES, size=SIZE, objects=2) for each in ("look_alike", "occlusion")]
        self.masks = [torch.from_numpy(clip.masks) for clip in clips]
        self.folders = [folder / str(video) for video in range(len(clips))]
        for clip, place in zip(clips, self.folders, strict=True):
            place.mkdir()
            for t, frame in enumerate(clip.frames):
                Image.fromarray(frame).save(place / f"{t:05d}.jpg", quality=95)

    def check(self, session: Session) -> None:
        """Run a session unwrapped and under each of `METHODS`.

        Raises:
            Differs: A wrapped run did what it must not.
        """
        expected, plain = self.run(session, None)
        self.sessions += 1
        self.tally["calls"].update(type(call).__name__ for call in session.calls)
        errors = [each.error.partition("\n")[0] for each in expected if each.error]
        self.tally["errors"].update(re.sub(r"\d+", "N", error) for error in errors)
        self.tally["frames"]["unwrapped"] += sum(len(each.masks) for each in expected)
        for method in METHODS:
            actual, ours = self.run(session, method)
            self.tally["frames"][method] += sum(len(each.masks) for each in actual)
            if method == "stock":
                check_equal(session, actual, expected)
                check_stored(ours.stored(), plain.stored())
            else:
                check_sound(session, method, actual, expected)

    def run(self, session: Session, method: str | None) -> tuple[list[Outcome], Run]:
        """Run a session under a method, None for unwrapped; return what each call gave."""
        predictor = self.plain if method is None else self.ours
        with _settings(predictor, FLAGS[session.flags]), shared_features(predictor), redirect_stderr(io.StringIO()):
            run = Run(predictor, self.folders, self.masks, method)
            hook = predictor.memory_attention.register_forward_pre_hook(run.check_attended, with_kwargs=True)
            try:
                return [run.do(call) for call in session.calls], run
            finally:
                run.open.clear()
                hook.remove()
                sk.unwrap(predictor)


@contextmanager
def _settings(predictor: Any, values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(predictor, name) for name in values}
    for name, value in values.items():
        setattr(predictor, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(predictor, name, value)


def check_equal(session: Session, actual: list[Outcome], expected: list[Outcome]) -> None:
    """Demand the same masks and errors of every call, to the last bit."""
    for call, one, two in zip(session.calls, actual, expected, strict=True):
        if one.error != two.error:
            raise Differs(f"under stock, {call} gives {one.error or 'no error'!r}, unwrapped {two.error or 'none'!r}")
        if [mask[:2] for mask in one.masks] != [mask[:2] for mask in two.masks]:
            raise Differs(f"under stock, {call} gives other frames or objects than unwrapped")
        for (frame_idx, _, ours), (_, _, theirs) in zip(one.masks, two.masks, strict=True):
            if not torch.equal(ours, theirs):
                raise Differs(f"under stock, {call} gives other masks on frame {frame_idx} than unwrapped")


def check_stored(actual: dict[tuple[Any, ...], Tensor], expected: dict[tuple[Any, ...], Tensor]) -> None:
    """Demand the same stored tensors, to the last bit."""
    if actual.keys() != expected.keys():
        raise Differs(f"under stock, other tensors are stored: {sorted(actual.keys() ^ expected.keys())[:4]}")
    for key, value in expected.items():
        if not torch.equal(actual[key], value):
            raise Differs(f"under stock, another {key} is stored")


def check_sound(session: Session, method: str, actual: list[Outcome], expected: list[Outcome]) -> None:
    """Demand that a bounded method gives masks wherever SAM 2 does, and fails only where and as SAM 2 does."""
    for call, one, two in zip(session.calls, actual, expected, strict=True):
        if one.error and one.error != two.error:
            raise Differs(f"under {method}, {call} gives {one.error!r}, unwrapped {two.error or 'no error'!r}")
        if two.error and not one.error:
            return  # from here on the two are no longer at the same point
        if [mask[:2] for mask in one.masks] != [mask[:2] for mask in two.masks]:
            raise Differs(f"under {method}, {call} gives other frames or objects than unwrapped")
        if not all(logits.isfinite().all() for _, _, logits in one.masks):
            raise Differs(f"under {method}, {call} gives masks that are not finite")


def main() -> None:
    from sam2_keyframe.micro import load_micro_predictor

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(lambda: load_micro_predictor(image_size=SIZE), Path(folder))

        @hypothesis.seed(options.seed)
        @settings(max_examples=options.count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(sessions())
        def all_of_them(session: Session) -> None:
            trial.check(session)

        all_of_them()
    found = {
        "sequences": trial.sessions, "seed": options.seed, "failures": 0, "seconds": round(time.perf_counter() - start),
        "model": f"micro, {SIZE} px", "video_frames": FRAMES, "methods": dict(METHODS), "settings": dict(FLAGS),
        **{name: dict(counter.most_common()) for name, counter in trial.tally.items()},
        "hypothesis": hypothesis.__version__, "cores": os.cpu_count(), **surroundings(),
    }  # fmt: skip
    options.results.mkdir(parents=True, exist_ok=True)
    write_text(options.results / "sessions.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
