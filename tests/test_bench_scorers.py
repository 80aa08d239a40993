"""The scorers' benchmark: clips that change as they say, the numbers made of them, and the pages made of those."""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.studies import reaction, scorers
from benchmarks.studies.reaction import CHANGES, NUISANCES, QUALITY, SCORERS, STEPS, ramp, render
from sam2_keyframe.scorers import SCORERS as REGISTRY

CLAIMS = {
    ("keyframe", "MaskIoU"): (
        "shape scale motion turning occlusion",
        "appearance background look-alike illumination noise",
    ),
    ("keyframe", "MaskShape"): ("shape occlusion", "scale appearance motion turning background illumination noise"),
    ("keyframe", "MaskShape area"): ("scale occlusion", "appearance motion turning background camera illumination"),
    ("keyframe", "FeatureShift memory"): ("appearance", "shape scale motion turning look-alike illumination camera"),
    ("keyframe", "FeatureShift image"): ("appearance", "shape scale motion turning look-alike illumination camera"),
    ("keyframe", "FeatureShift pointer"): ("occlusion", "shape motion turning look-alike illumination camera"),
    ("keyframe", "OpticalFlow mean, object"): ("motion turning", "background look-alike illumination noise"),
    ("keyframe", "OpticalFlow relative"): ("motion turning", "camera look-alike illumination noise"),
    ("previous", "OpticalFlow direction, object"): ("turning", "scale background look-alike illumination noise"),
    ("keyframe", "OpticalFlow mean"): ("camera", "illumination noise"),
    ("keyframe", "Histogram hsv"): ("background", "illumination motion"),
}
"""What the first table of docs/scorers.md says that a scorer notices, and what it says that it ignores."""

ROOT = Path(__file__).resolve().parents[1]


def middle(mask):
    return np.argwhere(mask).mean(0)[::-1]


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_starts_from_the_same_frame_and_grows(change):
    clip = ramp(3, CHANGES[change])
    image, mask = render(3)
    assert len(clip) == STEPS + 1
    np.testing.assert_array_equal(clip[0][0], image)
    np.testing.assert_array_equal(clip[0][1], mask)
    apart = [np.abs(now.astype(int) - image).mean() for now, _ in clip]
    assert 0 < apart[2] < apart[-1]
    moved = {"shape", "scale", "motion", "turning", "occlusion", "camera"}
    assert (iou(mask, clip[-1][1]) < 0.75) == (change in moved)


def test_changes_are_those_they_are_named_after():
    image, mask = render(5)
    found = {change: render(5, 1.0, **edit) for change, edit in CHANGES.items()}
    assert found["scale"][1].sum() == pytest.approx(2.25 * mask.sum(), rel=0.02)
    np.testing.assert_allclose(middle(found["motion"][1]) - middle(mask), [24, 0], atol=0.5)
    corner = [middle(m) - middle(mask) for _, m in ramp(5, CHANGES["turning"])]
    np.testing.assert_allclose(corner[STEPS // 2], [24, 0], atol=0.5)
    np.testing.assert_allclose(corner[-1], [24, 24], atol=0.5)
    assert not np.any(found["occlusion"][1] & ~mask)
    np.testing.assert_array_equal(found["appearance"][0][~mask], image[~mask])
    for change in ("background", "look-alike"):
        np.testing.assert_array_equal(found[change][0][mask], image[mask])
    np.testing.assert_allclose(found["illumination"][0], 0.6 * image, atol=1)
    noise = (found["noise"][0].astype(int) - image)[(image > 20) & (image < 235)]
    assert noise.std() == pytest.approx(5, rel=0.03)
    before = render(5, 0.875, **CHANGES["noise"])[0].astype(int) - image
    assert abs(np.corrcoef(before.ravel(), (found["noise"][0].astype(int) - image).ravel())[0, 1]) < 0.2


def test_every_scorer_has_a_row():
    assert {type(scorer) for scorer in (*SCORERS.values(), *QUALITY.values())} == set(REGISTRY.values())
    kinds = list(reaction.change_scorers())
    assert len({(kind, label) for kind, label, _ in kinds}) == len(kinds)
    assert all(scorer.reference == kind for kind, _, scorer in kinds if hasattr(scorer, "reference"))


def test_scores_are_of_the_last_frame_and_means_over_the_clip(monkeypatch):
    only = ("MaskIoU", "Spatiotemporal", "Surprise", "FeatureShift memory")
    monkeypatch.setattr(reaction, "SCORERS", {label: SCORERS[label] for label in only})
    clip = ramp(1, {"move": 40.0, "bend": 0.3})
    generator = torch.Generator().manual_seed(0)
    features = [
        {
            "image_embed": None,
            "maskmem_features": torch.randn(1, 3, 1, 1, generator=generator),
            "obj_ptr": torch.ones(1, 4),
        }
        for _ in clip
    ]
    scores = reaction.score_clip(clip, features)
    masks = [mask for _, mask in clip]
    steps = [1 - iou(a, b) for a, b in pairwise(masks)]
    assert scores["keyframe", "MaskIoU"] == pytest.approx(1 - iou(masks[0], masks[-1]), abs=1e-6)
    assert scores["previous", "MaskIoU"] == pytest.approx(np.mean(steps), abs=1e-6)
    assert scores["keyframe", "Spatiotemporal"] == pytest.approx(STEPS * scores["keyframe", "MaskIoU"], abs=1e-5)
    past, surprise = [0.0] * 5, []
    for step in steps:
        surprise.append(max(0.0, (step - np.mean(past)) / max(np.std(past), 1e-3, 0.01 * np.mean(past))))
        past.append(step)
    assert scores["previous", "Surprise"] == pytest.approx(np.mean(surprise), rel=1e-4)
    vectors = [made["maskmem_features"].ravel() for made in features]
    cosine = [1 - float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairwise(vectors)]
    assert scores["previous", "FeatureShift memory"] == pytest.approx(np.mean(cosine), abs=1e-5)


def test_verdicts_compare_with_the_largest_change_of_the_object():
    rows = {"some": {"shape": [0.1, 0.3], "scale": [0.4, 0.4], "noise": [0.9, 0.7], "camera": [0.01, 0.01]}}
    nuisances = ["noise", "camera"]
    found = scorers.shares(rows, nuisances)["some"]
    assert found == pytest.approx({"shape": 0.5, "scale": 1.0, "noise": 2.0, "camera": 0.025})
    assert scorers.verdicts(rows, nuisances)[-1] == "| some | scale, shape | - | noise | camera |"
    assert scorers.numbers(rows)[-1] == "| some | 0.20 ± 0.10 | 0.40 | 0.80 ± 0.10 | 0.010 |"


@pytest.mark.slow
def test_react_and_write_can_run_again(tmp_path, monkeypatch):
    changes = {change: CHANGES[change] for change in ("motion", "noise")}
    monkeypatch.setattr(reaction, "CHANGES", changes)
    monkeypatch.setattr(reaction, "NUISANCES", ("noise",))
    monkeypatch.setattr(reaction, "STEPS", 2)
    monkeypatch.setattr(reaction, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(scorers, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(scorers, "DOCS", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reaction.json").write_text("of an earlier run")
    reaction.react(seeds=2)
    found = json.loads((tmp_path / "results" / "reaction.json").read_text())
    assert set(found["quality"]) == set(QUALITY)
    assert set(found["keyframe"]) | set(found["previous"]) == set(SCORERS) - {"Combine MaskIoU + OpticalFlow"}
    for kind in ("keyframe", "previous"):
        assert all(list(row) == list(changes) and len(row["noise"]) == 2 for row in found[kind].values())
        values = [value for row in found[kind].values() for each in row.values() for value in each]
        assert np.isfinite(values).all()
        assert found[kind]["OpticalFlow relative"]["motion"][0] > 0.01
    page = tmp_path / "scorers.md"
    page.write_text(f"above\n{scorers.START}{scorers.END}\nbelow\n")
    scorers.write_reaction()
    text = page.read_text()
    scorers.write_reaction()
    assert page.read_text() == text
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "| MaskIoU | motion | - | - | noise |" in text
    assert (tmp_path / "scorers.png").stat().st_size > 10_000
    page.write_text("above\nbelow\n")
    with pytest.raises(ValueError, match=r"scorers\.md has lost the lines"):
        scorers.write_reaction()


def test_pages_say_what_the_results_say():
    found = json.loads((reaction.RESULTS / "reaction.json").read_text())
    assert list(found["changes"]) == list(CHANGES)
    assert found["nuisances"] == list(NUISANCES)
    assert scorers.page(found) in (ROOT / "docs" / "scorers.md").read_text()
    table = scorers.cost_table(json.loads((scorers.RESULTS / "cost.json").read_text()))
    assert table in scorers.README.read_text()
    assert (scorers.RESULTS / "cost.md").read_text() == table + "\n"


def test_the_results_bear_out_what_the_page_recommends():
    found = json.loads((reaction.RESULTS / "reaction.json").read_text())
    for (kind, label), (notices, ignores) in CLAIMS.items():
        share = scorers.shares(found[kind], found["nuisances"])[label]
        assert min(share[change] for change in notices.split()) >= 0.5, (label, share)
        assert max(share[change] for change in ignores.split()) <= 0.2, (label, share)
    quality = scorers.summary(found["quality"])
    for label in ("PredictedIoU", "ObjectScore", "Stability"):
        mean = {change: value for change, (value, _) in quality[label].items()}
        assert mean["occlusion"] < 0.8 * min(value for change, value in mean.items() if change != "occlusion"), mean
        kept = [mean[change] for change in ("scale", "shape", "illumination", "camera", "noise")]
        assert min(kept) > 0.9 * mean["nothing"], mean
    assert max(mean for mean, _ in quality["Distractor"].values()) < 0.1


def test_cost_is_the_median_and_counts_what_computes(monkeypatch):
    a = torch.ones(4, 4)
    clock = iter([*[0.0, 9.0] * scorers.WARM_UP, *[0.0, 1.0], *[0.0, 5.0], *[0.0, 2.0]])
    monkeypatch.setattr(scorers.time, "perf_counter", lambda: next(clock))
    row = scorers.timed(partial(partial, lambda: (a[0].t() + 1).sum()), 3)
    assert row == {"milliseconds": 2000.0, "operations": 2}


def test_numbers_of_the_cost_table_can_be_read():
    row = {"milliseconds": 12.345, "operations": 7, "bytes_kept": 1024}
    found = {
        "host": {"threads": 2, "side": 256, "times": "median of 31 after 3"},
        "frame_milliseconds": {"small": 11.0, "large": 200000.0},
        "scorers": {"slow": row, "fast": {**row, "milliseconds": 0.00004}, "none": {**row, "milliseconds": 0.5}},
    }
    lines = scorers.cost_table(found).splitlines()
    assert lines[2] == "| slow | 12 | 7 | 1.0 | 112 | 0.0062 |"
    assert lines[3] == "| fast | <0.0001 | 7 | 1.0 | 0.0004 | <0.0001 |"
    assert "no GPU could be had" in lines[-1]
