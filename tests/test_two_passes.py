"""`sam2-keyframe track --method genetic`: a first pass of its own, frames chosen from it, a second pass with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import FRAMES, folder, out, track  # noqa: F401 - fixtures

from sam2_keyframe import Frames, choose_frames
from sam2_keyframe.app import two_passes
from sam2_keyframe.replay import Recording

BOXES = ("--box", "12,10,40,44", "--box", "2@3:60,50,90,90")
QUICK = ("--no-overlay", "--no-pictures")


def frames_of(said: str) -> tuple[int, ...]:
    (line,) = (line for line in said.splitlines() if line.startswith("chose frames"))
    return tuple(map(int, line.removeprefix("chose frames ").partition(" of ")[0].split(", ")))


def masks(out: Path) -> list[bytes]:  # noqa: F811
    return [path.read_bytes() for path in sorted((out / "masks").iterdir())]


def table(out: Path) -> list[str]:  # noqa: F811
    return [line.rpartition(",")[0] for line in (out / "frames.csv").read_text().splitlines()]  # but for times


def test_genetic_makes_its_own_first_pass(folder, tmp_path, capsys):  # noqa: F811
    assert track(folder, tmp_path / "two", *BOXES, *QUICK, "--method", "genetic", "--set", "count=2") == 0
    said = capsys.readouterr().out
    chosen = frames_of(said)
    assert len(chosen) == 2
    assert set(chosen) <= set(range(FRAMES)) - {0, 3}  # not those with prompts
    assert "note: genetic tracks the whole video first, under keyframe" in said

    # what it chose is what choose_frames finds on the recording of such a pass
    assert track(folder, tmp_path / "first", *BOXES, *QUICK, "--method", "keyframe", "--set", "keep_masks=False") == 0
    recording = Recording.load(tmp_path / "first")
    frames, descriptors = two_passes.described(recording)
    shown = (descriptors.norm(dim=1) > 0).tolist()
    assert chosen == tuple(frames[place] for place in choose_frames(descriptors, shown, 2, "genetic"))

    # and the second pass is the method with these frames
    capsys.readouterr()
    given = f"frames={chosen!r}"
    assert track(folder, tmp_path / "given", *BOXES, *QUICK, "--method", "genetic", "--set", given) == 0
    assert "chose frames" not in capsys.readouterr().out
    assert masks(tmp_path / "two") == masks(tmp_path / "given")
    assert table(tmp_path / "two") == table(tmp_path / "given")


def test_objects_are_described_beside_each_other(folder, tmp_path):  # noqa: F811
    assert track(folder, tmp_path / "run", *BOXES, *QUICK) == 0
    recording = Recording.load(tmp_path / "run")
    frames, descriptors = two_passes.described(recording)
    assert frames == [t for t in range(FRAMES) if t not in (0, 3)]
    for place, obj_id in enumerate(recording.obj_ids):
        known, vectors = recording.descriptors(obj_id, two_passes.DESCRIPTOR)
        width = vectors.shape[1]
        part = descriptors[:, place * width : (place + 1) * width]
        for row, t in enumerate(frames):
            if t in known and bool(vectors[known.index(t)].any()):
                expected = torch.nn.functional.normalize(vectors[known.index(t)], dim=0)
                assert torch.allclose(part[row], expected)
            else:
                assert not part[row].any()


def test_the_method_keeps_its_other_choices():
    asked, rest = two_passes.divide({"count": 3, "seed": 4, "fill": True})
    assert asked == {"search": "genetic", "count": 3, "seed": 4}
    descriptors = np.random.default_rng(0).normal(size=(12, 8))
    recording = _recording(descriptors)
    method, line = two_passes.with_frames(recording, asked, rest)
    assert method.fill
    assert method.keyframes.when == Frames(frames_of(line))
    assert len(frames_of(line)) == 3
    with pytest.raises(ValueError, match="the first pass saw no object after its prompt"):
        two_passes.with_frames(_recording(0 * descriptors), asked, rest)


def _recording(descriptors: np.ndarray) -> Recording:
    from sam2_keyframe.replay import Geometry
    from sam2_keyframe.replay.steps import Kind, Step

    steps = [
        Step(1, t, Kind.FORWARD if t else Kind.PROMPT, descriptors={two_passes.DESCRIPTOR: row.astype(np.float32)})
        for t, row in enumerate(descriptors)
    ]
    return Recording(Geometry(), len(steps), (64, 64), steps)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("count=0", "count=0: must be a whole number of at least 1"),
        ("search=best", "choose 'greedy' or 'genetic'"),
        ("seed=0.5", "seed=0.5: must be a whole number"),
        ("change=0.2", "unknown keyword change"),
    ],
)
def test_bad_choices_are_refused_before_anything_is_tracked(folder, out, capsys, choice, message):  # noqa: F811
    assert track(folder, out, *BOXES, "--method", "genetic", "--set", choice) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
