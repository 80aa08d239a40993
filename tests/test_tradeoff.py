"""What smaller memories and fewer tokens cost: what is run, how it is counted, and what the table says."""

import dataclasses

import pytest
from PIL import Image

from benchmarks import tradeoff
from benchmarks._compare import Difference, load_groups
from benchmarks.tradeoff import Cost, cost, main, runs
from sam2_keyframe import make_method

SMALL = ["--image-size", "64", "--clips", "2", "--frames", "12", "--size", "64"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("tradeoff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tradeoff, "CODECS", {"eight bits": ("Int8()",)})
        patch.setattr(tradeoff, "SCHEMES", {"Pool": ("Pool(2)", "Pool(2, conditioning=True)")})
        patch.setattr(tradeoff, "RECOMMENDED", ("Int8()", "Pool(2)"))
        patch.setattr(tradeoff, "BOTH", (("Int8()", "Pool(2)"),))
        run = ["run", *SMALL, "--out", str(root / "out"), "--results", str(root / "results")]
        assert main(run) == 0
        written = {path: path.stat().st_mtime_ns for path in (root / "out").glob("*/videos/*/objects.csv")}
        assert main(run) == 0
        assert written == {path: path.stat().st_mtime_ns for path in (root / "out").glob("*/videos/*/objects.csv")}
        assert len(written) == 2 * len(runs())
        for command in ("table", "plot"):
            assert main([command, "--results", str(root / "results")]) == 0
        (group,) = load_groups(root / "results")
        yield root / "results", group, {r.label: cost(group, r) for r in group.results}


def test_every_setting_is_counted_at_1024_px(made):
    costs = made[2]
    assert len(costs) == len(runs()) == 7
    method = make_method("keyframe")
    held, minor = method.capacity, method.minor  # a compressor is the keyframes' alone
    one = 64 * 64 * 64 * 2
    packed = held * (one // 2 + 64 * 4) + minor * one
    assert {label: each.stored for label, each in costs.items() if label != "stock"} == {
        "keyframe": (held + minor) * one,
        "keyframe compressor=Int8()": packed,
        "keyframe attend=Pool(2)": (held + minor) * one,
        "keyframe attend=Pool(2, conditioning=True)": (held + minor) * one,
        "keyframe compressor=Int8() attend=Pool(2)": packed,
        "keyframe capacity=1 fill=False": (1 + minor) * one,
    }
    assert {label: each.tokens for label, each in costs.items() if "compressor" not in label} == {
        "stock": 7 * 4096,
        "keyframe": 7 * 4096,
        "keyframe attend=Pool(2)": 2 * 4096 + 5 * 1024,
        "keyframe attend=Pool(2, conditioning=True)": 4096 + 6 * 1024,
        "keyframe capacity=1 fill=False": (3 + minor) * 4096,
    }


def test_measured_occupancy_falls_with_what_is_counted(made):
    by_label = {result.label: result for result in made[1].results}
    whole, pooled = by_label["keyframe"], by_label["keyframe compressor=Int8() attend=Pool(2)"]
    assert pooled.occupancy("tokens") < whole.occupancy("tokens")
    assert pooled.occupancy("mib") < whole.occupancy("mib")


def test_the_table_has_every_setting_and_the_pictures_are_drawn(made):
    folder, group, costs = made
    text = (folder / "README.md").read_text()
    assert all(f"| `{label}` |" in text for label in costs)
    picture = f"{group.config['data']['name']}_test_2.png"
    assert picture in text
    with Image.open(folder / picture) as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 8


def test_a_setting_meets_the_bounds_by_its_whole_interval():
    good = Cost(1, 1, 4.0, 2.0, Difference(-0.1, -0.5, 0.3, 60))
    assert good.meets
    worse = [
        {"fewer_bytes": 3.9},
        {"fewer_tokens": 1.9},
        {"loss": Difference(0.0, -0.51, 0.5, 60)},
        {"loss": None},
    ]
    assert not any(dataclasses.replace(good, **change).meets for change in worse)


def test_what_is_missing_is_said_in_a_sentence(tmp_path, capsys):
    assert main(["table", "--results", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
