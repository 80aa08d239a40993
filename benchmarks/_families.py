"""The study's grid: ways to decide what a keyframe is, each with its thresholds; and which choice of each did best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks._compare import Group, Result
from benchmarks.sweep import BASELINES, combinations

CAPACITIES = "capacity=1,3,5"
BOTH = "MaskIoU(), OpticalFlow()"


@dataclass(frozen=True)
class Family:
    """One way to decide what a keyframe is, with the values of its one number.

    Attributes:
        fixed: Replacements that all of its runs have.
        keep: Its six thresholds, as `--grid` takes them.
        parts: Families it is made of, whose winners it has to beat.
        instead: The family with a fixed threshold that it is the adaptive form of.
    """

    fixed: tuple[str, ...]
    keep: str
    parts: tuple[str, ...] = ()
    instead: str = ""

    def runs(self) -> list[tuple[str, list[str]]]:
        """Return its runs: every threshold at every capacity."""
        return combinations((), "keyframe", self.fixed, [self.keep, CAPACITIES])[len(BASELINES) :]


FAMILIES: dict[str, Family] = {
    "mask IoU": Family(("scorer=MaskIoU()",), "keep=0.1,0.2,0.3,0.4,0.5,0.7"),
    "mask shape": Family(("scorer=MaskShape()",), "keep=0.1,0.15,0.2,0.25,0.3,0.4"),
    "SSIM": Family(("scorer=SSIM()",), "keep=0.1,0.2,0.3,0.35,0.4,0.5"),
    "optical flow": Family(("scorer=OpticalFlow()",), "keep=0.005,0.01,0.02,0.03,0.05,0.08"),
    "object pointer": Family(("scorer=FeatureShift()",), "keep=0.001,0.002,0.005,0.01,0.02,0.05"),
    "IoU + flow, sum": Family(
        (f"scorer=Combine(({BOTH}), weights=(1.0, 20.0))",),
        "keep=0.2,0.4,0.6,0.8,1.2,1.6",
        ("mask IoU", "optical flow"),
    ),
    "IoU + flow, z": Family(
        (f"scorer=Combine(({BOTH}), scale='z')",), "keep=0.25,0.5,1,1.5,2,3", ("mask IoU", "optical flow")
    ),
    "mask IoU, adaptive": Family(
        ("scorer=MaskIoU()",),
        "keep=" + ",".join(f"Adaptive(k={k})" for k in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)),
        instead="mask IoU",
    ),
    "mask IoU, quantile": Family(
        ("scorer=MaskIoU()",),
        "keep=" + ",".join(f"Quantile({q})" for q in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)),
        instead="mask IoU",
    ),
    "optical flow, adaptive": Family(
        ("scorer=OpticalFlow()",),
        "keep=" + ",".join(f"Adaptive(k={k}, fixed=0.02)" for k in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)),
        instead="optical flow",
    ),
}
"""Families of the grid: 6 thresholds x 3 capacities each. Thresholds were laid out by keep-rate, from most frames to
hardly any, on one clip of deformation and one of occlusion (development); the weight of flow makes both parts count."""


def winners(dev: Group, families: Mapping[str, Family]) -> dict[str, Result]:
    """Return each family's run of the highest J&F; of equals the one that keeps fewer frames."""
    found = {}
    for name, family in families.items():
        results = members(dev, family)
        if results:
            found[name] = max(results, key=lambda result: (round(result.jf, 6), -(result.metrics["keep_rate"] or 0.0)))
    return found


def members(group: Group, family: Family) -> list[Result]:
    """Return a group's runs of one family, in the grid's order; without those that lack videos."""
    by_label = {result.label: result for result in group.ranked}
    labels = [" ".join([name, *replacements]) for name, replacements in family.runs()]
    return [by_label[label] for label in labels if label in by_label]
