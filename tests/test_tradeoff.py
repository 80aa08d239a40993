"""What smaller memories and fewer tokens cost: what is run, how it is counted, and what the table says."""

import dataclasses

import pytest
from PIL import Image

from benchmarks import tradeoff
from benchmarks.compare import Difference, load_groups
from benchmarks.tradeoff import AXES, Cost, cost, draw, main, runs

SMALL = ["--image-size", "128", "--clips", "2", "--frames", "12", "--size", "64"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("tradeoff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tradeoff, "CODECS", {"eight bits": ("Int8()",)})
        patch.setattr(tradeoff, "SCHEMES", {"Pool": ("Pool(2)",), "prompt too": ("Pool(2, conditioning=True)",)})
        patch.setattr(tradeoff, "SMALL", "Int8()")
        patch.setattr(tradeoff, "PLAIN", [tradeoff.setting("Int8()", "Pool(2)")])
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


@pytest.mark.slow
def test_every_setting_is_counted_at_1024_px(made):
    costs = made[2]
    assert set(costs) == {"stock", "compact", *BOTH, *KEYS}
    one = 64 * 64 * 64 * 2
    packed = one // 2 + 64 * 4
    held = {"keyframe": 5 * one, BOTH[0]: 5 * packed, BOTH[1]: 5 * packed, FEWER[0]: one, FEWER[1]: 2 * one}
    assert {name: costs[name].stored for name in held} == held
    assert {name: costs[name].tokens for name in KEYS} == KEYS


BOTH = (
    "keyframe codec=Int8()",
    "keyframe codec=Int8() attend=Pool(2)",
)
FEWER = ("keyframe keyframes=1 others=0 fill=False", "keyframe others=0 fill=False")
KEYS = {
    "keyframe": 7 * 4096,
    "keyframe attend=Pool(2)": 2 * 4096 + 5 * 1024,
    "keyframe attend=Pool(2, conditioning=True)": 4096 + 6 * 1024,
    FEWER[0]: 3 * 4096,
    FEWER[1]: 4 * 4096,
}


@pytest.mark.slow
def test_measured_occupancy_falls_with_what_is_counted(made):
    by_label = {result.label: result for result in made[1].results}
    whole, pooled = by_label["keyframe"], by_label[BOTH[1]]
    assert pooled.occupancy("tokens") < whole.occupancy("tokens")
    assert pooled.occupancy("mib") < whole.occupancy("mib")


@pytest.mark.slow
def test_the_table_has_every_setting(made):
    folder, group, _ = made
    written = (folder / "README.md").read_text()
    names = ["`stock`", "`keyframe`", "`compact`", "`Int8()`", "`Int8()`, `Pool(2)`", "`others=0`, `fill=False`"]
    assert all(f"| {name} |" in written for name in names)
    picture = f"{group.config['data']['name']}_test_2.png"
    assert picture in written
    with Image.open(folder / picture) as image:
        assert image.width > 1000


@pytest.mark.slow
def test_the_pictures_show_every_setting_that_an_axis_tells_apart(made):
    from matplotlib.figure import Figure

    group = made[1]
    for x, shown in zip(
        AXES.values(),
        [{"compact", "eight bits", "codec and scheme", "fewer memories"}] * 2
        + [{"compact", "Pool", "prompt too", "codec and scheme"}],
        strict=True,
    ):
        panel = Figure().subplots()
        draw(panel, group, x)
        bars = {container.get_label(): len(container.lines[0].get_xdata()) for container in panel.containers}
        assert shown <= set(bars)
        assert bars["compact"] == bars["codec and scheme"] == 1
        low, high = panel.get_xlim()
        places = [place for container in panel.containers for place in container.lines[0].get_xdata()]
        assert places
        assert low <= min(places)
        assert max(places) < high


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
