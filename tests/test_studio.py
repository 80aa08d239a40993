"""What the app does, without its page, on the embedded model at 64 px."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import FRAMES, folder, out, track
from PIL import Image

from sam2_keyframe.app.output import Video
from sam2_keyframe.app.studio import MINE, STOCK, Models, Studio, documented
from sam2_keyframe.app.uploads import Limits
from sam2_keyframe.methods import METHODS

__all__ = ["folder", "out"]


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(["micro"], "cpu", image_size=64)


@pytest.fixture
def studio(models: Models, folder: Path) -> Any:
    made = Studio(models, folder.parent)
    made.load(folder.name)
    yield made
    made.close()


def _outlined(studio: Studio, t: int = 0, obj_id: int = 1, left: int = 30) -> None:
    studio.outline(t, obj_id, [(left, 30), (left + 50, 30), (left + 50, 90), (left, 90)])


def _tracked(studio: Studio, **how: Any) -> list[np.ndarray]:
    for _ in studio.track(**how):
        pass
    return _masks(studio)


def _masks(studio: Studio, which: str = MINE) -> list[np.ndarray]:
    found = [studio.labels(t, which) for t in range(studio.frames)]
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


def _equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_the_command_and_the_script_make_the_masks_that_were_shown(
    studio: Studio, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _outlined(studio)
    studio.box(2, 2, (70, 20, 120, 60))
    studio.choose("micro", "keyframe", {"change": "MaskIoU() > 0.05"})
    first = studio.labels(0)
    shown = _tracked(studio)
    assert np.array_equal(first, shown[0])
    with zipfile.ZipFile(studio.export(["boxes"], video=False)) as file:
        file.extractall(tmp_path)
    monkeypatch.chdir(tmp_path / "sam2-keyframe")
    os.symlink(folder, folder.name)
    words = Path("again.sh").read_text().split()
    assert words[:3] == ["sam2-keyframe", "track", folder.name]
    words = [
        word.strip("'") for word in studio.command().replace("'change=MaskIoU() > 0.05'", "change=@").split()[3:-2]
    ]
    words = ["change=MaskIoU() > 0.05" if word == "change=@" else word for word in words]
    assert track(folder.name, Path("run"), *words) == 0
    assert _equal(shown, [np.asarray(Image.open(f"run/masks/{t:05d}.png")) for t in range(FRAMES)])
    assert _equal(shown, [np.asarray(Image.open(f"masks/{t:05d}.png")) for t in range(FRAMES)])
    own, more = (Path(each).read_text().splitlines()[0].split(",") for each in ("frames.csv", "run/frames.csv"))
    assert set(own) <= set(more)  # the command measures more scores than the method asks for


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keyframe", "dam4sam", "xmem_style"])
def test_a_correction_is_what_it_would_have_been_had_tracking_paused_there(
    method: str, studio: Studio, models: Models, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.choose("micro", method, {})
    _outlined(studio)
    before = _tracked(studio, compare=True)
    alone = _masks(studio, STOCK)
    corrected = studio.point(4, 1, 100, 100)
    studio.point(4, 1, 20, 20, positive=False)
    corrected = studio.point(4, 1, 64, 70)
    assert not np.array_equal(corrected, before[4])
    assert studio.labels(5) is None
    assert studio.labels(4, STOCK) is None
    after = _tracked(studio, compare=True)
    assert _equal(after[:4], before[:4])
    assert np.array_equal(after[4], corrected)
    assert not _equal(after[5:], before[5:])
    assert _equal(_masks(studio, STOCK)[:4], alone[:4])

    paused = Studio(models, folder.parent)
    paused.load(folder.name)
    paused.choose("micro", method, {})
    _outlined(paused)
    for at in paused.track():
        if at.frame_idx == 4:
            paused.stop()
    for x, y, positive in ((100, 100, True), (20, 20, False), (64, 70, True)):
        paused.point(4, 1, x, y, positive)
    assert _equal(after, _tracked(paused))
    paused.close()

    with zipfile.ZipFile(studio.export(video=False)) as file:
        file.extractall(tmp_path)
    monkeypatch.chdir(tmp_path / "sam2-keyframe")
    os.symlink(folder, folder.name)
    told: dict[str, Any] = {}
    exec(Path("again.py").read_text(), told)
    assert _equal(after, [told["masks"][t] for t in range(FRAMES)])


def test_what_is_taken_back_leaves_nothing(studio: Studio) -> None:
    _outlined(studio)
    before = _tracked(studio)
    studio.point(5, 1, 10, 10)
    studio.undo(5, 1)
    assert _equal(before, _tracked(studio))
    assert not studio.corrections


def test_an_object_that_comes_later_is_tracked_from_there(studio: Studio) -> None:
    _outlined(studio)
    before = _tracked(studio)
    _outlined(studio, 3, 2, left=70)
    after = _tracked(studio)
    assert _equal(before[:3], after[:3])
    assert [2 in np.unique(each) for each in after[:4]] == [False, False, False, True]


def test_a_replay_keeps_what_the_run_kept_also_after_a_correction(studio: Studio) -> None:
    studio.choose("micro", "keyframe", {"change": "0.02", "keyframes": "2"})
    _outlined(studio)
    _tracked(studio)
    for corrected in (False, True):
        if corrected:
            studio.point(4, 1, 100, 100)
            _tracked(studio)
        rows = studio.runs[MINE].stats()[1].rows
        replayed = studio.replay({}).stats[1].rows
        assert [row.keyframe for row in rows] == [row.keyframe for row in replayed]
        assert [row.attended for row in rows] == [row.attended for row in replayed]
    [(rule, name)] = studio.bounds()
    assert (rule.bound, name) == (0.02, "change")
    assert sum(bool(row.keyframe) for row in studio.replay({"change": "0.99"}).stats[1].rows) == 0


def test_every_memory_that_was_read_says_why(studio: Studio) -> None:
    studio.choose("micro", "keyframe", {"change": "0.02"})
    _outlined(studio)
    _tracked(studio)
    mine = studio.runs[MINE]
    kinds = {s: mine.why(1, 7, s)[0] for s in mine.rows[1][7].attended}
    assert (kinds[0], kinds[6]) == ("prompt", "newest")
    held = mine.rows[1][7].keyframes
    assert held
    assert {s for s, kind in kinds.items() if kind == "keyframe"} == set(held)
    assert all("mask_iou" in mine.why(1, 7, s)[1] for s in held)


def test_two_people_at_once_do_not_meet(models: Models, folder: Path) -> None:
    def session(method: str, left: int, found: dict[str, Any]) -> None:
        studio = Studio(models, folder.parent)
        studio.load(folder.name)
        studio.choose("micro", method, {})
        _outlined(studio, left=left)
        found[method] = _tracked(studio)
        studio.close()

    alone: dict[str, Any] = {}
    together: dict[str, Any] = {}
    for method, left in (("samurai", 20), ("keyframe", 60)):
        session(method, left, alone)
    threads = [threading.Thread(target=session, args=(*each, together)) for each in (("samurai", 20), ("keyframe", 60))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(_equal(alone[method], together[method]) for method in alone)


def test_nothing_changes_while_it_tracks(studio: Studio) -> None:
    _outlined(studio)
    tracking = studio.track()
    next(tracking)
    with pytest.raises(ValueError, match="tracking is under way; stop it first"):
        studio.point(0, 1, 5, 5)
    studio.stop()
    assert list(tracking) == []
    assert studio.runs[MINE].until == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("os.system('true')", "a class of your own cannot be named here"),
        ("my_scorers.Redness() > 0.2", "a class of your own cannot be named here"),
        ("__import__('os')", "there is no '__import__'"),
        ("(lambda: 1)()", "neither a literal nor built from registered classes"),
        ("[x for x in (1,)]", "neither a literal nor built from registered classes"),
        ("9" * 400, "400 characters"),
        ("0.5 +", "cannot be read"),
    ],
)
def test_choices_are_of_the_registry_alone(text: str, told: str, studio: Studio) -> None:
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        studio.choose("micro", "keyframe", {"change": text})
    assert studio.choices == {}


def test_every_method_tells_what_its_arguments_are() -> None:
    for name in METHODS:
        text, arguments = documented(name)
        assert text
        assert all(default for default, _ in arguments.values())
    assert documented("keyframe")[1]["change"][1].startswith("Bound on")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"\0\0\0\x18ftypmp42")
        file.truncate(10 * 10**9)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../evil.jpg", b"x")


HOSTILE: dict[str, tuple[Any, str]] = {
    "clip.zip": (_zip, "is a zip archive; unpack it"),
    "zip.mp4": (_zip, "is a zip archive; unpack it"),
    "sparse.mp4": (_sparse, "10,000 MB are more than the 500 MB"),
    "list.m3u8": (lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "is a playlist"),
    "list.mp4": (lambda path: path.write_text("ffconcat version 1.0\nfile secret.mp4\n"), "is a playlist"),
    "list.mpd": (lambda path: path.write_text("<?xml version='1.0'?><MPD/>"), "is a page or a playlist"),
    "noise.mp4": (lambda path: path.write_bytes(bytes(range(1, 200))), "neither a video nor a picture"),
    "cut.mp4": (lambda path: path.write_bytes(b"\0\0\0\x18ftypmp42"), "cannot be opened as a video"),
    "bad.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "not a picture that can be read"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "neither a video nor a picture"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_video_is_refused(name: str, studio: Studio, tmp_path: Path) -> None:
    make, told = HOSTILE[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=told):
        studio.load_upload([tmp_path / name])
    assert studio.frames == FRAMES


@pytest.mark.parametrize("text", ["..", "../../etc/passwd", "/etc/passwd", "link", "a\0b", "x" * 5000, "missing.mp4"])
def test_nothing_outside_of_the_folder_is_loaded(text: str, studio: Studio) -> None:
    link = studio.root / "link"
    if text == "link":
        link.symlink_to("/etc")
    with pytest.raises(ValueError, match="of this app"):
        studio.load(text)
    link.unlink(missing_ok=True)


def test_a_video_that_is_too_long_or_large_is_refused(models: Models, folder: Path) -> None:
    for limits, told in ((Limits(frames=3), "8 frames are more than the 3"), (Limits(side=64), "128 x 128 pixels")):
        studio = Studio(models, folder.parent, limits)
        with pytest.raises(ValueError, match=told):
            studio.load(folder.name)
        studio.close()


def test_pictures_come_in_the_order_of_their_names(studio: Studio, folder: Path) -> None:
    files = sorted(folder.iterdir())
    studio.load_upload([files[2], files[0], files[1]])
    assert studio.frames == 3
    assert np.array_equal(studio.frame(1), np.asarray(Image.open(files[1])))


def test_the_example_is_tracked_from_its_outline(models: Models, tmp_path: Path) -> None:
    studio = Studio(models, tmp_path)
    studio.load_example()
    assert studio.objects() == [1]
    place = studio.folder
    next(studio.track())
    assert "--mask 0:prompts/00000_1.png" in studio.command()
    studio.close()
    assert not place.exists()


@pytest.mark.slow
def test_what_is_held_does_not_grow_with_the_video(models: Models, clip: Any, tmp_path: Path) -> None:
    video = Video(tmp_path / "film.mp4", 24)
    frames = [*clip.frames, *clip.frames[-2:0:-1]]
    for t in range(160):
        video.add(frames[t % len(frames)])
    video.close()
    studio = Studio(models, tmp_path)
    studio.load("film.mp4")
    _outlined(studio)
    held = {}
    for at in studio.track():
        mine = studio.runs[MINE]
        if at.frame_idx in (60, 159):
            mine._put_aside(at.frame_idx + 1)  # what is copied is what is held
            newest = mine._aside.pop(at.frame_idx + 1)
            held[at.frame_idx] = sum(each.nbytes for each in newest.shared if isinstance(each, torch.Tensor))
        assert len(mine._aside) <= 12
        assert all(len(aside.shared) < 200 for aside in mine._aside.values())
    assert held[159] <= 1.1 * held[60]
    kept = sum(len(step.mask) + sum(each.nbytes for each in step.descriptors.values()) for step in mine.steps)
    assert kept / len(mine.steps) < 8000  # bytes a frame and object, for replays
    studio.close()
