"""Random sessions: `stock` is as unwrapped; bounded methods neither fail by themselves nor exceed their room."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import make_predictor
from hypothesis import HealthCheck, given, seed, settings
from plans import chosen, replanned
from random_calls import FLAGS, Clear, Prompt, Remove, Reset, Resume, Session, Track, Wrap, sessions
from random_sessions import METHODS, SIZE, Differs, Run, Trial

from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.patches import sam2 as patch

FORWARD = Track(0, None, None, reverse=False, take=None)
START = Prompt(0, 0, 1, "mask")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial(lambda: make_predictor(image_size=SIZE), tmp_path_factory.mktemp("videos"))


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(session=sessions(longest=10))
def test_a_sample(trial: Trial, session: Session) -> None:
    trial.check(session)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SESSIONS"), reason="takes ten minutes and more: SESSIONS=500, or make test-all")
def test_as_many_as_are_asked_for(tmp_path: Path) -> None:
    """Prints how many calls, frames and errors there were; `results/sessions/sessions.json` keeps such counts."""
    trial = Trial(lambda: load_micro_predictor(image_size=SIZE), tmp_path)

    @seed(0)
    @settings(
        max_examples=int(os.environ["SESSIONS"]), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(sessions())
    def all_of_them(session: Session) -> None:
        trial.check(session)

    all_of_them()
    assert trial.sessions >= int(os.environ["SESSIONS"])
    print(json.dumps({name: dict(counter.most_common()) for name, counter in trial.tally.items()}, indent=1))


@pytest.mark.slow
def test_all_calls_in_a_row(trial: Trial) -> None:
    """Whatever the sample happens to hold, each kind of call is made, and each gives masks or an error of SAM 2's."""
    before = trial.sessions
    calls = [
        START, Prompt(0, 0, 2, "box"), Track(0, None, None, reverse=False, take=4), Prompt(1, 1, 1, "points"),
        Track(1, None, 5, reverse=False, take=None), Resume(0, 3), Wrap(False), Resume(0, 9), Wrap(True),
        Prompt(0, 5, 1, "more points"), FORWARD, Track(0, 7, 5, reverse=True, take=None), Clear(0, 0, 2),
        Remove(0, 2, strict=True), FORWARD, Reset(0), FORWARD, Prompt(0, 4, 3, "box and points"), FORWARD,
    ]  # fmt: skip
    for flags in FLAGS:
        trial.check(Session(flags, calls))
    expected, run = trial.run(Session("plain", calls), None)
    assert trial.sessions == before + len(FLAGS)
    assert [len(each.masks) for each in expected][2:8] == [4, 1, 6, 3, 0, 3]
    assert ["No input points or masks are provided for any object" in each.error for each in expected].count(True) == 1
    assert all(trial.tally["calls"][kind] for kind in ("Prompt", "Track", "Resume", "Clear", "Remove", "Reset", "Wrap"))
    assert len({logits.sum().item() for _, _, logits in expected[7].masks}) == 3, "masks vary"
    assert len(run.stored()) > 40


# -- what would be found --------------------------------------------------------------------------------------------


def test_a_wrong_memory_is_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    view = patch.memory_view
    monkeypatch.setattr(patch, "memory_view", lambda read, *rest: view(replanned(read, chosen(read)[:-1]), *rest))
    with pytest.raises(Differs, match=r"under stock, Track.* other masks on frame 2"):
        trial.check(Session("plain", [START, FORWARD]))


@pytest.mark.parametrize("method", ["stock", "keyframe"])
@pytest.mark.parametrize("obj", [1, 2])
def test_another_error_is_found(method: str, obj: int, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SAM 2 gives none (object 1), and where it gives one of its own (object 2, which there is not)."""

    def remove(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no room")

    monkeypatch.setattr(trial.ours, "remove_object", remove)
    monkeypatch.setattr("random_sessions.METHODS", {method: {}})
    with pytest.raises(Differs, match=rf"under {method}, Remove.*no room.*unwrapped.*"):
        trial.check(Session("plain", [START, Remove(0, obj, strict=True)]))


def test_a_missing_error_is_found_under_stock(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial.ours, "remove_object", lambda *_, **__: ([], []))
    with pytest.raises(Differs, match=r"under stock, Remove.* gives 'no error', unwrapped .*doesn't exist"):
        trial.check(Session("plain", [START, Remove(0, 2, strict=True)]))


def test_too_many_memories_held_are_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "keyframe", {"store": "all"})  # type: ignore[arg-type]
    with pytest.raises(Differs, match="object 1 holds 7 memories on frame 7, with room for 6"):
        trial.check(Session("plain", [START, FORWARD]))


def test_too_many_memories_attended_to_are_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "_check_held", lambda *_: None)
    monkeypatch.setattr(Run, "_room", lambda *_: 3)
    with pytest.raises(Differs, match=r"5 memories attended to, with 4 prompted frames and places at most"):
        trial.check(Session("plain", [START, FORWARD]))
