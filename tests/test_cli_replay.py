"""`sam2-keyframe replay`: what it writes after `track`, over masks from elsewhere, and what it refuses."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import FRAMES, film, folder, out, track  # noqa: F401
from PIL import Image

from sam2_keyframe.app import cli
from sam2_keyframe.app.replay_command import OUTPUTS

SHARED = ("significance", "keyframe", "evicted", "attended", "area", "frames", "bytes", "tokens", "stock_bytes")


def play(*arguments: object) -> int:
    return cli.main(["replay", *map(str, arguments)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["MaskIoU()", "Histogram()"])
def test_track_and_then_replay_say_the_same(folder: Path, out: Path, tmp_path: Path, capsys: Any, scorer: str) -> None:
    choices = ["--memory", f"KeyframeMemory(Recent(1), Keyframes(2, {scorer} > 0.02), Others(3))"]
    assert track(folder, out, "--box", "20,20,90,90", "--point", "2@5:40,70", *choices) == 0
    capsys.readouterr()
    assert play(folder, out, *choices, "--out", tmp_path / "replayed") == 0
    said = capsys.readouterr().out
    assert "masks were held fixed" in said
    assert sorted(path.name for path in (tmp_path / "replayed").iterdir()) == sorted(OUTPUTS)
    live = {(row["frame"], row["object"]): row for row in rows(out / "frames.csv") if row["prompted"] == "0"}
    replayed = {(row["frame"], row["object"]): row for row in rows(tmp_path / "replayed" / "timeline.csv")}
    assert live.keys() == replayed.keys()
    for place, row in live.items():
        assert {name: row[name] for name in SHARED} == {name: replayed[place][name] for name in SHARED}
    summary = json.loads((tmp_path / "replayed" / "summary.json").read_text())
    first = summary["objects"]["1"]
    assert first["prompts"] == [0]
    assert first["tracked"] == FRAMES - 1
    assert first["keyframes"] == [int(t) for (t, o), row in live.items() if o == "1" and row["keyframe"] == "1"]
    assert len(first["keyframes"]) > 0
    assert "held fixed" in summary["masks"]


def test_over_a_folder_of_masks_from_anywhere(folder: Path, clip: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "masks").mkdir()
    for t in range(4, FRAMES):
        Image.fromarray(clip.masks[t].astype(np.uint8)).save(tmp_path / "masks" / f"{t:05d}.png")
    assert play(folder, tmp_path / "masks", "--set", "change=0.05", "--out", tmp_path / "replayed") == 0
    assert "replayed 2 objects" in capsys.readouterr().out
    found = rows(tmp_path / "replayed" / "timeline.csv")
    assert [int(row["frame"]) for row in found if row["object"] == "1"] == list(range(5, FRAMES))
    assert {row["predicted_iou"] for row in found} <= {"", "0"}


def refused(capsys: Any, out: Path, *arguments: object) -> str:
    assert play(*arguments, "--out", out) == 2
    said: str = capsys.readouterr().err
    assert said.startswith("sam2-keyframe: error: ")
    assert said.count("\n") == 1
    assert not out.exists()
    return said


def test_bad_input_is_one_sentence_and_nothing_is_written(
    folder: Path, film: Path, clip: Any, tmp_path: Path, out: Path, capsys: Any
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    assert "no images" in refused(capsys, out, folder, masks)
    for t in (0, 1, 3):
        Image.fromarray(clip.masks[t].astype(np.uint8)).save(masks / f"{t:05d}.png")
    assert "frame 2 is missing" in refused(capsys, out, folder, masks)
    Image.fromarray(clip.masks[2].astype(np.uint8)).save(masks / "00002.png")
    assert f"{FRAMES} frames, the masks 4" in refused(capsys, out, folder, masks)
    for t in range(4, FRAMES):
        Image.fromarray(clip.masks[t].astype(np.uint8)).save(masks / f"{t:05d}.png")
    assert "recording.npz" in refused(capsys, out, folder, masks, "--set", "change=FeatureShift() > 0.1")
    assert "Kalman" in refused(capsys, out, folder, masks, "--method", "samurai", "--set", "choice=Kalman()")
    assert "no recording" in refused(capsys, out, folder, film)
    assert "nothing" in refused(capsys, out, folder, tmp_path / "nothing")
    assert "nothing" in refused(capsys, out, tmp_path / "nothing", masks)
    Image.fromarray(clip.masks[0][:-8].astype(np.uint8)).save(masks / "00003.png")
    assert "another size" in refused(capsys, out, folder, masks)
    Image.fromarray(clip.frames[3]).save(masks / "00003.png")
    assert "colour" in refused(capsys, out, folder, masks)
    (masks / "00003.png").write_text("no picture")
    assert "not a picture" in refused(capsys, out, folder, masks)
    for t in range(FRAMES):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(masks / f"{t:05d}.png")
    assert "no object" in refused(capsys, out, folder, masks)
    for t in range(FRAMES + 1):
        Image.fromarray(np.full((8, 8), 1, np.uint8)).save(masks / f"{t:05d}.png")
    assert f"the masks {FRAMES + 1}" in refused(capsys, out, folder, masks)
    (masks / f"{FRAMES:05d}.png").unlink()
    assert "8 x 8" in refused(capsys, out, folder, masks, "--set", "change=SSIM() > 0.1")


def test_gates_that_know_nothing_say_so(folder: Path, out: Path, clip: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "masks").mkdir()
    for t in range(FRAMES):
        Image.fromarray(clip.masks[t].astype(np.uint8)).save(tmp_path / "masks" / f"{t:05d}.png")
    assert play(folder, tmp_path / "masks", "--method", "samurai", "--out", tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert "note: predicted_iou is not known of these masks" in said
    assert f"replayed 2 objects over {FRAMES - 1} frames in " in said
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["unknown"] == ["predicted_iou"]
    assert track(folder, out, "--box", "20,20,90,90", "--method", "samurai") == 0
    capsys.readouterr()
    assert play(folder, out, "--method", "samurai", "--out", tmp_path / "b") == 0
    assert "note: " not in capsys.readouterr().out, "a recording knows"
