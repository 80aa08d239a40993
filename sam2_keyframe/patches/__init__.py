"""Hosts: the only code that names a predictor's private members."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from typing import Any

from sam2_keyframe.patches.batched import Batched
from sam2_keyframe.patches.driving import Driver
from sam2_keyframe.patches.edgetam import EdgeTam
from sam2_keyframe.patches.edgetam_batched import EdgeTamBatched
from sam2_keyframe.patches.host import Host, ObjectFrames
from sam2_keyframe.patches.sam2 import Sam2
from sam2_keyframe.patches.sam3_video import Sam3Video
from sam2_keyframe.patches.transformers import Transformers
from sam2_keyframe.patches.ultralytics import Ultralytics

HOSTS: tuple[type[Host], ...] = (Ultralytics, EdgeTamBatched, Batched, Sam2, EdgeTam, Sam3Video, Transformers)
"""The hosts, in the order in which they are asked. None of them is imported by this."""


def find_host(predictor: object) -> type[Host]:
    """Return the host of a predictor; predictors are recognised by class name and method signatures, not by version.

    Raises:
        TypeError: No host takes it; the message names the supported ones.
    """
    for host in HOSTS:
        if host.knows(predictor):
            reason = host.refuses(predictor)
            if reason is None:
                return host
            reason = f"{reason} ({_version_of(predictor)}; tested with {', '.join(host.TESTED)})"
            break
    else:
        reason = "it is not a SAM 2 video predictor"
    raise TypeError(
        f"sam2_keyframe cannot wrap {type(predictor).__module__}.{type(predictor).__qualname__}: {reason}. "
        f"Supported: {'; '.join(host.NAME for host in HOSTS)}."
    )


def _version_of(predictor: object) -> str:
    """Return the package that a predictor's class is of, and its version."""
    packages = packages_distributions()
    roots = [cls.__module__.split(".")[0] for cls in type(predictor).__mro__]
    known = next((root for root in roots if root in packages), "torch")
    if known == "torch":  # nothing of its own is installed as a package
        return f"{roots[0]}, of no known version"
    return f"{packages[known][0]} {version(packages[known][0])}"


def host_of(session: Any) -> type[Host]:
    """Return the host of an inference state.

    Raises:
        TypeError: It is of no host.
    """
    for host in HOSTS:
        if host.objects(session) is not None:
            return host
    raise TypeError(
        f"{type(session).__name__} is not an inference state of a supported predictor: give what init_state() "
        "returned, or a host's own"
    )


def objects_of(session: Any) -> Mapping[Any, ObjectFrames]:
    """Return each object's frames in an inference state, by object id. Raises as `host_of`."""
    return host_of(session).objects(session) or {}


def driver_of(predictor: Any) -> Driver:
    """Return what opens states of a predictor and drives it frame by frame.

    Raises:
        TypeError: No host takes it.
    """
    return find_host(predictor).driver(predictor)
