"""The command line: what it writes, and what its options mean."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from commandline import FRAMES, film, folder, out, track  # noqa: F401
from PIL import Image

from sam2_keyframe import (
    BLOCKS,
    METHODS,
    MaskIoU,
    MinGap,
    Visible,
    init_state,
    make_method,
    wrap,
)
from sam2_keyframe.app import cli, models, options, pictures
from sam2_keyframe.app import track as tracking
from sam2_keyframe.app.track import OUTPUTS
from sam2_keyframe.video.source import FrameSource


@pytest.fixture
def mask(clip: Any, tmp_path: Path) -> Path:
    path = tmp_path / "first.png"
    Image.fromarray(clip.masks[0]).save(path)
    return path


def test_track_writes_masks_film_table_and_pictures(folder: Path, mask: Path, out: Path, capsys: Any) -> None:
    assert track(folder, out, "--mask", mask) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    assert said.count("note: ") == 1
    assert "not for real footage" in said or models.RANDOM_MODEL in said
    files = sorted((out / "masks").iterdir())
    assert [file.name for file in files] == [f"{t:05d}.png" for t in range(FRAMES)]
    with Image.open(files[0]) as first, Image.open(mask) as given:
        assert first.mode == "P"
        assert (np.asarray(first) == np.asarray(given)).mean() > 0.97, "the prompted frame shows the prompt"
    with av.open(str(out / "overlay.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert len(list(film.decode(stream))) == FRAMES
    data = (out / "overlay.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "browsers want the header first"
    for picture in ("timeline.png", "memory.png"):
        with Image.open(out / picture) as image:
            assert min(image.size) > 200
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_table_has_a_row_a_frame_and_object(folder: Path, mask: Path, out: Path) -> None:
    assert track(folder, out, "--mask", mask, "--set", "measure=[FeatureShift()]", "--set", "change=0.0") == 0
    with (out / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["frame"]), int(row["object"])) for row in rows] == [(t, o) for t in range(FRAMES) for o in (1, 2)]
    assert all(row["prompted"] == "1" and row["tokens"] == "" for row in rows[:2])
    tracked = rows[2:]
    assert all(row["prompted"] == "0" for row in tracked)
    for name in ("significance", "mask_iou", "feature_shift", "predicted_iou", "object_score", "area", "milliseconds"):
        assert all(np.isfinite(float(row[name])) for row in tracked), name
    assert all(row["significance"] == row["mask_iou"] for row in tracked)
    assert all(row["keyframe"] in "01" for row in tracked)
    last = rows[-1]
    assert int(last["frames"]) <= 7
    assert int(last["stock_frames"]) == FRAMES
    assert int(last["tokens"]) > 0
    assert last["attended"].split()[0] == "0"


def test_the_same_masks_as_sam2_alone_under_stock(folder: Path, mask: Path, clip: Any, out: Path) -> None:
    assert track(folder, out, "--mask", mask, "--method", "stock") == 0
    predictor, _ = models.load_model("micro", "cpu", image_size=64)
    state = predictor.init_state(str(folder))
    with torch.inference_mode():
        for obj_id in (1, 2):
            predictor.add_new_mask(state, 0, obj_id, clip.masks[0] == obj_id)
        for t, ids, logits in predictor.propagate_in_video(state):
            alone = np.zeros(logits.shape[-2:], int)
            best, index = logits[:, 0].max(0)
            alone[best.numpy() > 0] = np.array(ids)[index.numpy()][best.numpy() > 0]
            with Image.open(out / "masks" / f"{t:05d}.png") as image:
                assert (np.asarray(image) == alone).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keyframe", "window", "samurai"])
def test_masks_of_past_frames_are_not_held_and_not_missed(
    method: str, film: Path, mask: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prompts that come later, too: the masks are those of a run that keeps all its masks."""
    states: list[Any] = []
    monkeypatch.setattr(tracking, "init_state", lambda *args: states.append(init_state(*args)) or states[-1])
    later = {"--box": "1@14:20,20,90,90", "--point": "3@15:60,60"}
    given = [word for pair in later.items() for word in pair]
    assert track(film, out, "--mask", mask, *given, "--method", method, "--frames", 30) == 0
    predictor, _ = models.load_model("micro", "cpu", image_size=64)
    prompts = options.parse_prompts([str(mask)], [later["--box"]], [later["--point"]], frames=30, size=(128, 128))
    with FrameSource(film, num_frames=30) as source, wrap(predictor, method, keep_masks=True):
        for t, _, obj_ids, logits in tracking.sweep(predictor, tracking.new_state(predictor, source), source, prompts):
            with Image.open(out / "masks" / f"{t:05d}.png") as image:
                assert np.array_equal(np.asarray(image), pictures.label_map(obj_ids, logits)), t
    held, kept = ([each["non_cond_frame_outputs"] for each in s["output_dict_per_obj"].values()] for s in states)
    assert [len(each) for each in kept] == [28, 29, 14]
    assert [len(each) < 21 for each in held] == [True] * 3


def test_a_film_with_boxes_and_points_on_several_frames(film: Path, out: Path) -> None:
    prompts = ["--box", "20,20,90,90", "--point", "60,60", "--point", "5,5,-", "--point", "2@5:40.5,70"]
    assert track(film, out, *prompts, "--frames", 9) == 0
    with (out / "frames.csv").open() as file:
        rows = [(int(row["frame"]), int(row["object"]), row["prompted"]) for row in csv.DictReader(file)]
    assert [(t, o) for t, o, _ in rows] == [(t, 1) for t in range(5)] + [(t, o) for t in range(5, 9) for o in (1, 2)]
    assert {(t, o) for t, o, prompted in rows if prompted == "1"} == {(0, 1), (5, 2)}


def test_the_caption_counts_what_an_object_holds_while_it_is_prompted_again(
    folder: Path, mask: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[str] = []
    draw = pictures.overlay
    monkeypatch.setattr(pictures, "overlay", lambda *a, caption="", **b: captions.append(caption) or draw(*a, **b))
    assert track(folder, out, "--mask", mask, "--point", "1@5:60,60", "--frames", 7) == 0
    with (out / "frames.csv").open() as file:
        held = {(int(row["frame"]), int(row["object"])): row["frames"] for row in csv.DictReader(file)}
    assert (held[5, 1], held[0, 2]) == ("", "")
    counted = [re.search(r"(\d+) memor", caption) for caption in filter(None, captions)]
    assert [each and int(each[1]) for each in counted] == [
        None if t == 0 else int(held[t, 1] or held[t - 1, 1]) + int(held[t, 2]) for t in range(7)
    ]


def test_set_builds_registered_classes_only() -> None:
    chosen = options.parse_set(
        ["change=(MaskIoU(reference='previous') > 0.2) & MinGap(3)", "keyframes=4", "fill=False", "codes=slot",
         "measure=[FeatureShift(name='f')]"]
    )  # fmt: skip
    method = make_method("keyframe", **chosen)
    assert method.keyframes.when == Visible() & ((MaskIoU(reference="previous") > 0.2) & MinGap(3))
    assert (method.keyframes.n, method.fill, method.codes) == (4, False, "slot")
    assert [scorer.name for scorer in method.measure] == ["f"]
    assert options.parse_value("-inf") == -np.inf
    for text in (
        "MaskIoU().name",
        "2**9",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "open('x')",
        "MaskIoU(bad=1)",
        "1 +",
        "*",
    ):
        with pytest.raises(ValueError, match=r".+"):
            options.parse_value(text)


def test_every_method_can_be_written_out() -> None:
    for name, factory in METHODS.items():
        method = factory(frames=(3,)) if name == "genetic" else factory()
        assert options.chosen_method(None, repr(method), []) == ("own memory", method)
    assert options.parse_value("keyframe(change=0.3)") == make_method("keyframe", change=0.3)


def test_set_takes_each_choice_once_and_splits_values() -> None:
    with pytest.raises(ValueError, match="change is given twice; give it once"):
        options.parse_set(["change=0.1", "change=0.2"])
    found = options.split_values("Quality(minimum=0.1, x=[1,2]), anchor,0.3,None,0.3")
    assert found == ["Quality(minimum=0.1, x=[1,2])", "anchor", "0.3", "None"]
    for text in ("a]+[b", "1 +"):
        with pytest.raises(ValueError, match="write values with commas between them"):
            options.split_values(text)


OWN = """
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Redness:
    name: str = "redness"

    def score(self, frame, history):
        return frame.image[0].mean()


@dataclass(frozen=True)
class Even:
    def accept(self, record, past):
        return record.frame_idx % 2 == 0


@dataclass(frozen=True)
class Number:
    name: str = "number"

    def score(self, frame, history):
        return 0.5


@dataclass(frozen=True)
class Map:
    name: str = "map"

    def score(self, frame, history):
        return frame.image


@dataclass(frozen=True)
class Forgetful:
    def accept(self, record, past):
        record.frame_idx % 2 == 0


@dataclass(frozen=True)
class Unmeasured:
    def accept(self, record, past):
        return record.scores["brightness"] > 0.5
"""


def test_own_scorers_and_rules_by_import_path(
    folder: Path, out: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """From a file in the current folder, without touching the package; what they return wrongly is named."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    own = "KeyframeMemory(Recent(1), Keyframes(2, (mine.Redness() > 0.01) & mine.Even()))"
    assert track(folder, out, "--box", "20,20,90,90", "--memory", own) == 0
    with (out / "frames.csv").open() as file:
        tracked = [row for row in csv.DictReader(file) if row["prompted"] == "0"]
    assert all(float(row["redness"]) > 0 for row in tracked)
    assert {int(row["frame"]) % 2 == 0 for row in tracked if row["keyframe"] == "1"} == {True}
    for rule, words in {
        "mine.Number() > 0.1": "Number.score() returned 0.5",
        "mine.Map() > 0.1": "Map.score() returned a tensor of shape (3,",
        "mine.Forgetful()": "Forgetful.accept() returned None",
        "mine.Unmeasured()": "Unmeasured() reads the score 'brightness', which nothing measures",
        "mine.Missing()": "has no class 'Missing'",
        "theirs.Redness() > 0.1": "the module 'theirs' cannot be imported",
        "Visible() & MaskIoU() > 0.5": "score, not a rule",
        "0.2 < SSIM() < 0.5": "write two comparisons",
        "Visble()": "did you mean 'Visible'",
    }.items():
        memory = f"KeyframeMemory(Recent(1), Keyframes(2, {rule}))"
        capsys.readouterr()
        assert track(folder, tmp_path / "none", "--box", "20,20,90,90", "--memory", memory) == 2, rule
        said = capsys.readouterr().err
        assert words in said, (rule, said)
        assert said.count("\n") == 1
    assert track(folder, tmp_path / "none", "--box", "20,20,90,90", "--memory", own, "--method", "fifo") == 2
    assert "--method fifo and --memory" in capsys.readouterr().err


def test_list_names_every_building_block(capsys: Any) -> None:
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    names = [*METHODS, *(name for blocks in BLOCKS.values() for name in blocks)]
    assert [name for name in names if f"  {name}(" not in said] == []
    lines = said.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("  ") and not line.startswith("   ")]
    assert all(len(lines[i + 1].strip()) > 15 for i in heads), "each with a line of text"


@pytest.mark.parametrize(("size", "letter"), models.SIZES.items())
@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
def test_sizes_match_the_configuration_files_of_sam2(size: str, letter: str, version: str) -> None:
    import sam2

    config = f"configs/{version}/{version}_hiera_{letter}.yaml"
    model = yaml.safe_load((Path(sam2.__file__).parent / config).read_text())["model"]
    trunk = model["image_encoder"]["trunk"]
    blocks = range(sum(trunk.get("stages", (2, 3, 16, 3))))
    weights = {f"image_encoder.trunk.blocks.{block}.norm1.weight": torch.empty(1) for block in blocks}
    weights["image_encoder.trunk.patch_embed.proj.weight"] = torch.empty(trunk.get("embed_dim", 96), 3, 7, 7)
    if model.get("no_obj_embed_spatial"):
        weights["no_obj_embed_spatial"] = torch.empty(1)
    assert models.recognise(weights, "x.pt") == config


@pytest.mark.slow
def test_a_checkpoint_in_the_official_format_is_tracked_with(folder: Path, out: Path, tmp_path: Path) -> None:
    from sam2.build_sam import build_sam2_video_predictor

    torch.manual_seed(0)
    model = build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    path = tmp_path / "weights.pt"
    torch.save({"model": model.state_dict()}, path)
    sizes = ["--image-size", 128, "--frames", 3, "--box", "20,20,90,90"]
    assert track(folder, out, "--model", path, *sizes) == 0
    assert len(list((out / "masks").iterdir())) == 3
    loaded, stamp = models.load_model(str(path), "cpu", image_size=128)
    assert stamp == ""
    assert loaded.image_size == 128
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_module_runs_as_a_script() -> None:
    import subprocess

    done = subprocess.run([sys.executable, "-m", "sam2_keyframe.app.cli", "track"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("sam2-keyframe: error: ")


def test_a_reader_that_stops_early_is_no_error() -> None:
    import subprocess

    command = f"{sys.executable} -m sam2_keyframe.app.cli list | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("methods")


def test_pictures_of_many_objects_say_how_many_are_not_drawn(
    folder: Path, out: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.zeros((128, 128), np.uint8)
    for obj_id in range(1, 16):
        row, column = divmod(obj_id - 1, 4)
        ids[30 * row + 4 : 30 * row + 24, 30 * column + 4 : 30 * column + 24] = obj_id
    Image.fromarray(ids).save(tmp_path / "many.png")
    drawn: list[str] = []
    strip, line = pictures.filmstrip, tracking.write
    monkeypatch.setattr(pictures, "filmstrip", lambda *a, **b: drawn.append(b["title"]) or strip(*a, **b))
    monkeypatch.setattr(tracking, "write", lambda *a: drawn.append(a[2]) or line(*a))
    assert track(folder, out, "--mask", tmp_path / "many.png", "--frames", 2, "--no-overlay") == 0
    assert [title.split(":")[0] for title in drawn[:-1]] == [f"object {obj_id}" for obj_id in range(1, 13)]
    assert drawn[-1] == "3 more objects are not drawn: 13, 14, 15"
    said = capsys.readouterr().out
    assert "  object 12: " in said
    assert "  object 13: " not in said
    assert " held; holds " in said
    assert "... and 3 more objects: see frames.csv" in said
