"""Mask pictures: which are read, which are refused before they become objects that nobody painted, and their names."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import FRAMES, folder, out, track  # noqa: F401
from PIL import Image, ImageDraw, ImageFilter

from sam2_keyframe.app import cli
from sam2_keyframe.app.masks import frame_names, read_mask, read_masks

SIZE = (96, 128)


def ellipse(value: int = 255, mode: str = "L") -> Image.Image:
    image = Image.new(mode, SIZE[::-1])
    ImageDraw.Draw(image).ellipse((30, 20, 90, 70), fill=value)
    return image


HARD = np.asarray(ellipse()) > 0


def smooth() -> Image.Image:
    big = Image.new("L", (8 * SIZE[1], 8 * SIZE[0]))
    ImageDraw.Draw(big).ellipse((240, 160, 720, 560), fill=255)
    return big.resize(SIZE[::-1], Image.Resampling.LANCZOS)


def jpeg_as_png(tmp_path: Path) -> Image.Image:
    ellipse().save(tmp_path / "copy.jpg", quality=80)
    return Image.open(tmp_path / "copy.jpg").copy()


def halved() -> Image.Image:
    """Return a mask brought to another size and back: a single shade between black and white."""
    soft = np.asarray(ellipse()).copy()
    edge = HARD & ~np.asarray(ellipse().filter(ImageFilter.MinFilter(3))).astype(bool)
    soft[edge] = 128
    return Image.fromarray(soft)


SOFT = {
    "smooth": lambda folder: smooth(),
    "blurred": lambda folder: ellipse().filter(ImageFilter.GaussianBlur(3)),
    "resized": lambda folder: ellipse().resize((50, 40), Image.Resampling.BILINEAR).resize(SIZE[::-1]),
    "one shade": lambda folder: halved(),
    "a jpeg kept as png": jpeg_as_png,
    "two objects, smoothed": lambda folder: ellipse(200).filter(ImageFilter.SMOOTH_MORE),
}


@pytest.mark.parametrize("kind", SOFT)
def test_soft_edges_are_no_objects(kind: str, tmp_path: Path) -> None:
    SOFT[kind](tmp_path).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png: \d+ values.*smoothed or resized.*--binary.*numbered from 1"):
        read_mask(tmp_path / "m.png", SIZE)
    found = read_mask(tmp_path / "m.png", SIZE, binary=True)
    assert list(found) == [1]
    assert (found[1] != HARD).mean() < 0.02


@pytest.mark.parametrize("name", ["m.jpg", "m.webp", "m.jp2", "m.tif"])
def test_lossy_formats_are_refused_and_read_as_one_object(name: str, tmp_path: Path) -> None:
    try:
        ellipse().save(tmp_path / name, **({"compression": "jpeg"} if name == "m.tif" else {}))
    except (KeyError, OSError):
        pytest.skip("this Pillow does not write it")
    with pytest.raises(ValueError, match=r"whose compression changes values.*--binary"):
        read_mask(tmp_path / name, SIZE)
    found = read_mask(tmp_path / name, SIZE, binary=True)
    assert (found[1] != HARD).mean() < 0.01


def test_objects_stay_objects(tmp_path: Path) -> None:
    """What may be asked for is not taken for a smoothed edge: void, tiny objects, odd ids, 16 bits."""
    ids = np.zeros(SIZE, np.uint8)
    for obj_id in range(1, 11):
        ids[5, 8 * obj_id : 8 * obj_id + 2] = obj_id  # ten objects of two pixels
    far = np.zeros(SIZE, np.uint8)
    far[10:40, 10:40], far[50:80, 50:80], far[41:43] = 7, 200, 255  # odd ids, a line of void
    pictures = {
        "tiny.png": (Image.fromarray(ids), list(range(1, 11))),
        "far.png": (Image.fromarray(far), [7, 200]),
        "one.png": (ellipse(1), [1]),
        "white.png": (ellipse(), [1]),
        "bits.png": (ellipse().convert("1"), [1]),
        "sixteen.png": (Image.fromarray((np.asarray(ellipse(3))).astype(np.uint16)), [3]),
    }
    for name, (picture, wanted) in pictures.items():
        picture.save(tmp_path / name)
        found = read_mask(tmp_path / name, SIZE)
        assert list(found) == wanted, name
    assert (read_mask(tmp_path / "white.png", SIZE)[1] == HARD).all()


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (Image.fromarray(np.asarray(ellipse()).astype(np.uint16) * 257), "16-bit grey.*65535.*--binary"),
        (ellipse().convert("LA"), "grey picture with transparency.*--binary"),
        (ellipse().convert("RGB"), "colour picture.*--binary"),
    ],
)
def test_other_kinds_are_called_what_they_are(picture: Image.Image, words: str, tmp_path: Path) -> None:
    picture.save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=words):
        read_mask(tmp_path / "m.png", SIZE)
    assert (read_mask(tmp_path / "m.png", SIZE, binary=True)[1] == HARD).all()


def test_binary_reads_palettes_zeros_and_ones_and_refuses_the_dark(tmp_path: Path) -> None:
    palette = ellipse(8).convert("L")
    palette.putpalette([0, 0, 0, *([64, 0, 0] * 255)])
    cut_out = Image.merge("RGBA", [Image.new("L", SIZE[::-1], 255)] * 3 + [ellipse()])
    for name, picture in (("p.png", palette), ("ones.png", ellipse(1)), ("cut.png", cut_out)):
        picture.save(tmp_path / name)
        assert (read_mask(tmp_path / name, SIZE, binary=True)[1] == HARD).all(), name
    ellipse(60).save(tmp_path / "dark.png")
    with pytest.raises(ValueError, match="no pixel is brighter than half: leave --binary out"):
        read_mask(tmp_path / "dark.png", SIZE, binary=True)


def test_masks_belong_to_the_frames_they_are_named_after(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in (1, 2, 4, 5):
        Image.new("RGB", SIZE[::-1]).save(frames / f"{number:05d}.jpg")
    names = frame_names(frames, 4)
    assert names == ["00001", "00002", "00004", "00005"]
    for kept in (("00002", "00004", "00005"), ("2", "4", "5")):
        masks = tmp_path / f"masks{len(kept[0])}"
        masks.mkdir()
        for value, name in enumerate(kept, 1):
            ellipse(value).save(masks / f"{name}.png")
        assert [int(ids.max()) for ids in read_masks(masks, names)] == [0, 1, 2, 3]
    (masks / "4.png").unlink()
    with pytest.raises(ValueError, match=r"frame 2 \(00004\) is missing"):
        read_masks(masks, names)
    Image.new("RGB", SIZE[::-1]).save(frames / "00002.jpeg")
    assert frame_names(frames, 5)[1:3] == ["00002.jpeg", "00002.jpg"]
    assert list(frame_names(tmp_path / "film.mp4", 2)) == ["00000", "00001"]


def test_track_names_masks_after_frames_and_replay_reads_them_so(clip: Any, out: Path, tmp_path: Path) -> None:
    frames = tmp_path / "gaps"
    frames.mkdir()
    numbers = [3, 4, 7, 8, 9, 12]
    for t, number in enumerate(numbers):
        Image.fromarray(clip.frames[t]).save(frames / f"shot{number}.jpg", quality=95)
    Image.fromarray(clip.masks[0]).save(tmp_path / "first.png")
    assert track(frames, out, "--mask", tmp_path / "first.png") == 0
    assert {path.stem for path in (out / "masks").iterdir()} == {f"shot{number}" for number in numbers}
    code = cli.main(["replay", str(frames), str(out / "masks"), "--out", str(tmp_path / "replayed")])
    assert code == 0
    with (tmp_path / "replayed" / "timeline.csv").open() as file:
        assert {int(row["frame"]) for row in csv.DictReader(file)} == set(range(1, len(numbers)))


def test_smooth_masks_are_refused_on_the_command_line_and_binary_ones_tracked(
    folder: Path, out: Path, tmp_path: Path, capsys: Any
) -> None:
    mask = tmp_path / "m.jpg"
    ellipse().resize((128, 128)).save(mask)
    assert track(folder, out, "--mask", mask) == 2
    assert "--binary" in capsys.readouterr().err
    assert track(folder, out, "--mask", mask, "--binary", "--frames", 2) == 0
    assert "tracked 1 object " in capsys.readouterr().out
    masks = tmp_path / "masks"
    masks.mkdir()
    for t in range(FRAMES):
        smooth().resize((128, 128)).save(masks / f"{t:05d}.png")
    for binary, code in (((), 2), (("--binary",), 0)):
        assert cli.main(["replay", str(folder), str(masks), *binary, "--out", str(tmp_path / "replayed")]) == code
    said = capsys.readouterr()
    assert "--binary" in said.err
    assert f"replayed 1 object over {FRAMES - 1} frames" in said.out
