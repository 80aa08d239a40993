"""Where results are written: one process at a time, and earlier results stay until the new ones are whole."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import folder, out, track  # noqa: F401

from sam2_keyframe.app.output import new_folder
from sam2_keyframe.app.track import OUTPUTS

BOX = ("--box", "20,20,90,90", "--frames", 2)

WRITER = """
import sys
from pathlib import Path
from sam2_keyframe.app.output import new_folder
from sam2_keyframe.app.track import OUTPUTS

with new_folder(Path(sys.argv[1]), OUTPUTS) as folder:
    (folder / "masks").mkdir()
    (folder / "frames.csv").write_text("half a row")
    print("writing", flush=True)
    sys.stdin.read()
"""


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def cut_off(work: Path) -> None:
    """Write a part of the results."""
    (work / "frames.csv").write_text("new")
    raise OSError("disk")


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_a_second_process_is_refused_until_the_first_has_ended_or_was_killed(
    folder: Path, out: Path, capsys: Any, earlier: bool
) -> None:
    if earlier:
        assert track(folder, out, *BOX) == 0
        table = (out / "frames.csv").read_text()
    command = [sys.executable, "-c", WRITER, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "writing\n"
        capsys.readouterr()
        assert track(folder, out, *BOX, "--model", "none.pt") == 2  # at the start: before a model is looked for
        said = capsys.readouterr().err
        assert f"--out {out}: another process is writing there; wait for it or choose another folder" in said
        assert not earlier or (out / "frames.csv").read_text() == table
        first.kill()
    assert track(folder, out, *BOX) == 0
    assert names(out) == sorted(OUTPUTS)


def test_what_another_writes_is_left_alone_by_who_was_refused(out: Path) -> None:
    with new_folder(out, OUTPUTS) as work:
        (work / "frames.csv").write_text("ours")
        with pytest.raises(ValueError, match="another process"), new_folder(out, OUTPUTS):
            pass
    assert (names(out), (out / "frames.csv").read_text()) == (["frames.csv"], "ours")


def test_earlier_results_stay_when_the_new_ones_fail_and_go_when_they_are_whole(out: Path) -> None:
    out.mkdir(parents=True)
    for name in ("frames.csv", "timeline.png"):
        (out / name).write_text("earlier")
    with pytest.raises(OSError, match="disk"), new_folder(out, OUTPUTS) as work:
        cut_off(work)
    assert names(out) == ["frames.csv", "timeline.png"]
    assert (out / "frames.csv").read_text() == "earlier"
    with new_folder(out, OUTPUTS) as work:
        (work / "frames.csv").write_text("new")
        assert (out / "frames.csv").read_text() == "earlier"
    assert (names(out), (out / "frames.csv").read_text()) == (["frames.csv"], "new")


def test_a_link_to_a_folder_stays_one(folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    out.parent.mkdir()
    out.symlink_to(tmp_path / "disk")
    for _ in range(2):
        assert track(folder, out, *BOX) == 0
    assert out.is_symlink()
    assert names(tmp_path / "disk") == sorted(OUTPUTS)


def test_a_link_to_nowhere_is_refused(out: Path) -> None:
    out.parent.mkdir()
    out.symlink_to("nowhere")
    with pytest.raises(ValueError, match="cannot be written"), new_folder(out, OUTPUTS):
        pass
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupt_while_results_take_their_place_leaves_the_earlier_ones(
    after: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.mkdir(parents=True)
    for name in ("frames.csv", "timeline.png"):
        (out / name).write_text("earlier")
    calls, real = [], Path.rename

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == after:
            raise KeyboardInterrupt
        return real(self, target)

    def write() -> None:
        with new_folder(out, OUTPUTS) as work:
            for name in ("frames.csv", "timeline.png"):
                (work / name).write_text("new")
            monkeypatch.setattr(Path, "rename", rename)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(out) == ["frames.csv", "timeline.png"]
    assert {(out / name).read_text() for name in names(out)} == {"earlier"}
