"""What the command line's texts mean: choices of a method, prompts. Nothing is evaluated that is not in a registry."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.app.masks import read_mask
from sam2_keyframe.blocks import BLOCKS
from sam2_keyframe.conditions import Threshold
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.methods import METHODS, make_method
from sam2_keyframe.types import KeyframeFilter, Scorer
from sam2_keyframe.video.live import SCHEMES

CONSTANTS: Mapping[str, float] = {"inf": math.inf, "nan": math.nan}
LONGEST = 300
"""Characters of a value that is not the command line's own."""

OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}


def building_blocks() -> dict[str, Callable[..., Any]]:
    """Return everything that a choice may name: classes by name, and methods."""
    return {**METHODS, **{name: cls for kind in BLOCKS.values() for name, cls in kind.items()}}


def local_path(text: str) -> Path:
    """Return the path that an argument names.

    Raises:
        ArgumentTypeError: It is an address.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise argparse.ArgumentTypeError(f"{text} is an address; give a path here (download it first)")
    return Path(text)


def source_of(text: str) -> Path | str | int:
    """Return what frames are read from: a path, an address, or the number of a camera.

    Raises:
        ArgumentTypeError: It is an address that cannot be read from.
    """
    if text.isdecimal() and not Path(text).exists():
        return int(text)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text)
    if found and found[1] not in SCHEMES:
        raise argparse.ArgumentTypeError(f"{text}: addresses begin with {', '.join(f'{each}://' for each in SCHEMES)}")
    return text if found else Path(text)


def parse_set(texts: Iterable[str]) -> dict[str, Any]:
    """Return the choices that `--set key=value` options name.

    A value is a Python literal, or built from registered classes: `change=SSIM() > 0.2`, `attend=Pool(2)`,
    `measure=[FeatureShift()]`. Any other word is a string.

    Raises:
        ValueError: A text is not of that form, or a choice is given twice.
    """
    choices: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier() or not value.strip():
            raise ValueError(f"--set {text!r}: write key=value, as in --set change=0.3 or --set 'attend=Pool(2)'")
        if key.strip() in choices:
            raise ValueError(f"--set {text!r}: {key.strip()} is given twice; give it once")
        choices[key.strip()] = parse_value(value.strip())
    return choices


def split_values(text: str) -> list[str]:
    """Return the texts of several values, which commas outside brackets divide, none twice.

    >>> split_values("SSIM(region='object'), anchor, 0.3")
    ["SSIM(region='object')", 'anchor', '0.3']

    Raises:
        ValueError: It cannot be read.
    """
    whole = f"[{text}]"
    try:
        tree = ast.parse(whole, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        tree = None
    if not isinstance(tree, ast.List):
        raise ValueError(f"{text!r} cannot be read: write values with commas between them, as in 0.1,0.2")
    found = [ast.get_source_segment(whole, node) for node in tree.elts]
    return list(dict.fromkeys(filter(None, found)))


def add_method_arguments(parser: Any) -> None:
    """Add `--method`, `--memory` and `--set`, of which `chosen_method` makes a method."""
    parser.add_argument("--method", help=f"{', '.join(METHODS)} (default: keyframe)")
    parser.add_argument(
        "--memory",
        metavar="MEMORY",
        help="a memory written out: 'KeyframeMemory(Recent(1), Keyframes(2, SSIM() > 0.3))'",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="an argument of the method, or a choice of the whole memory: change=0.3, 'attend=Pool(2)'",
    )  # fmt: skip


def chosen_method(name: str | None, memory: str | None, choices: Iterable[str]) -> tuple[str, KeyframeMemory]:
    """Return what `--method`, `--memory` and `--set` choose: a name for titles, and the method.

    Raises:
        ValueError: A text cannot be read, or both a method and a memory are given.
        TypeError: A choice is of the wrong kind.
    """
    if memory is None:
        return name or "keyframe", make_method(name or "keyframe", **parse_set(choices))
    if name is not None:
        raise ValueError(f"--method {name} and --memory choose one each: give one of them")
    built = parse_value(memory)
    if not isinstance(built, KeyframeMemory):
        raise ValueError(
            f"--memory {memory!r} is no memory: write it out, as in --memory 'KeyframeMemory(Recent(1), Keyframes(2, "
            "Visible() & (MaskIoU() > 0.5)))'"
        )
    return "own memory", make_method(built, **parse_set(choices))


def parse_value(text: str) -> Any:
    """Return what one value means; see `parse_set`.

    A class that is not registered is named with its module, as in `my_scorers.Redness() > 0.2`; the module is
    looked for in the current folder too, and importing it runs it.

    Raises:
        ValueError: It names an unknown class, is more than literals and classes, or a class refuses it.
    """
    if re.fullmatch(r"[A-Za-z_]+", text) and text not in (*building_blocks(), *CONSTANTS, "True", "False", "None"):
        return text
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise ValueError(f"{text!r} cannot be read: write a number, a word, or a class such as MaskIoU()") from None
    try:
        return _build(tree)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from None


def parse_registered(text: str) -> Any:
    """Return what one value means as `parse_value` does, of literals and registered classes alone: nothing is imported.

    Raises:
        ValueError: It names anything else, or is longer than `LONGEST`.
    """
    if len(text) > LONGEST:
        raise ValueError(f"a value of {len(text):,} characters: give at most {LONGEST}")
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        nodes = []  # `parse_value` tells what is wrong
    if any(isinstance(node, ast.Attribute) for node in nodes):
        raise ValueError(f"{text!r}: a class of your own cannot be named here; choose from `sam2-keyframe list`")
    return parse_value(text)


def _build(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_build(each) for each in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_build(key): _build(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return operator.neg(_build(node.operand))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return operator.invert(_build(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _build(node.left), _build(node.right)
        if any(isinstance(side, KeyframeFilter | Scorer) for side in (left, right)):
            return OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Compare):
        return _compare(node)
    if isinstance(node, ast.Name):
        return CONSTANTS[node.id] if node.id in CONSTANTS else _block(node)()
    if isinstance(node, ast.Attribute):
        return _block(node)()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        positional = [_build(each) for each in node.args]
        named = {each.arg: _build(each.value) for each in node.keywords if each.arg is not None}
        if len(named) == len(node.keywords):
            block = _block(node.func)
            known = inspect.signature(block).parameters
            for name in named:
                if name not in known:
                    valid = ", ".join(known) or "none"
                    raise ValueError(
                        f"{block.__name__}({name}=...): there is no such choice; valid are {valid}"
                        f"{did_you_mean(name, known)}"
                    )
            return block(*positional, **named)
    raise ValueError(
        f"{ast.unparse(node)!r} is neither a literal nor built from registered classes: see `sam2-keyframe list`"
    )


def _compare(node: ast.Compare) -> Any:
    if len(node.ops) > 1:
        raise ValueError(f"{ast.unparse(node)!r}: write two comparisons, as in (S > 0.2) & (S < 0.5)")
    left, right, sign = _build(node.left), _build(node.comparators[0]), type(node.ops[0])
    if sign not in (ast.Gt, ast.Lt):
        raise ValueError(f"{ast.unparse(node)!r}: a score is compared with > or <")
    if isinstance(left, Scorer):
        return Threshold(left, right, ">" if sign is ast.Gt else "<")
    if isinstance(right, Scorer):
        return Threshold(right, left, "<" if sign is ast.Gt else ">")
    return left > right  # which says what is wrong with it


def _block(node: ast.Name | ast.Attribute) -> Callable[..., Any]:
    path = ast.unparse(node)
    if isinstance(node, ast.Attribute):
        return _imported(path)
    blocks = building_blocks()
    if path not in blocks:
        raise ValueError(
            f"there is no {path!r}; there are {', '.join(sorted(blocks))}; a class of your own is named with its "
            f"module, as my_scorers.{path}(){did_you_mean(path, blocks)}"
        )
    return blocks[path]


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{path}: the module {module!r} cannot be imported ({error})") from None
    finally:
        sys.path.remove(here)
    if not isinstance(found, type):
        raise ValueError(f"{path}: the module {module!r} has no class {name!r}")
    return found


@dataclass
class Prompt:
    """What the user says about one object on one frame: a mask, or a box and points.

    Attributes:
        frame_idx: The frame, from 0.
        obj_id: The object, 1 to 255.
        mask: (H, W) bool, or None.
        box: x0, y0, x1, y1 in pixels, or None.
        points: x, y in pixels, each with 1 (on the object) or 0 (not on it).
    """

    frame_idx: int
    obj_id: int
    mask: NDArray[np.bool_] | None = None
    box: tuple[float, ...] | None = None
    points: list[tuple[float, float, int]] = field(default_factory=list)


def parse_prompts(
    masks: Iterable[str],
    boxes: Iterable[str],
    points: Iterable[str],
    *,
    frames: int,
    size: tuple[int, int],
    binary: bool = False,
) -> list[Prompt]:
    """Return the prompts that `--mask`, `--box` and `--point` name, in the order of their frames.

    Args:
        masks: `[FRAME:]file.png`.
        boxes: `[OBJ@FRAME:]x0,y0,x1,y1`.
        points: `[OBJ@FRAME:]x,y` or `[OBJ@FRAME:]x,y,-`.
        frames: Length of the video.
        size: Height and width of its frames.
        binary: Whether each mask is one object, white on black.

    Raises:
        ValueError: A prompt is malformed, lies outside the video, or contradicts another; or there is none.
    """
    found: dict[tuple[int, int], Prompt] = {}
    for text in masks:
        match = re.fullmatch(r"(?:(\d+):)?(.+)", text)
        frame_idx, path = (int(match[1] or 0), match[2]) if match else (0, text)
        _check_frame(f"--mask {text}", frame_idx, frames)
        for obj_id, mask in read_mask(Path(path), size, binary).items():
            if (frame_idx, obj_id) in found:
                raise ValueError(f"--mask {text}: object {obj_id} has two masks on frame {frame_idx}; give one")
            found[frame_idx, obj_id] = Prompt(frame_idx, obj_id, mask=mask)
    for option, texts in (("--box", boxes), ("--point", points)):
        for text in texts:
            frame_idx, obj_id, numbers = _parse_place(option, text, size)
            _check_frame(f"{option} {text}", frame_idx, frames)
            prompt = found.setdefault((frame_idx, obj_id), Prompt(frame_idx, obj_id))
            if prompt.mask is not None or (option == "--box" and prompt.box is not None):
                held = "a mask" if prompt.mask is not None else "a box"
                raise ValueError(
                    f"{option} {text}: object {obj_id} has {held} on frame {frame_idx} already; SAM 2 takes one mask, "
                    "or one box and any number of points"
                )
            if option == "--box":
                prompt.box = tuple(numbers)
            else:
                prompt.points.append((numbers[0], numbers[1], 0 if text.endswith("-") else 1))
    if not found:
        raise ValueError("no prompt: say what to track with --mask FILE.png, --box x0,y0,x1,y1 or --point x,y")
    return [found[key] for key in sorted(found)]


def _parse_place(option: str, text: str, size: tuple[int, int]) -> tuple[int, int, list[float]]:
    """Return frame, object and coordinates of a box or a point."""
    form = "x0,y0,x1,y1" if option == "--box" else "x,y (or x,y,- for background)"
    match = re.fullmatch(r"(?:(\d+)@(\d+):)?([^:@]+)", text)
    parts = match[3].split(",") if match else []
    if option == "--point" and len(parts) == 3 and parts[2].strip() in ("-", "+"):
        parts.pop()
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if match is None or len(numbers) != (4 if option == "--box" else 2):
        raise ValueError(f"{option} {text}: write [OBJ@FRAME:]{form}, numbers in pixels, as in 2@10:{form.split()[0]}")
    obj_id, frame_idx = int(match[1] or 1), int(match[2] or 0)
    if not 1 <= obj_id <= 255:
        raise ValueError(f"{option} {text}: object {obj_id}; object ids go from 1 to 255")
    inside = all(0 <= x <= size[1] for x in numbers[::2]) and all(0 <= y <= size[0] for y in numbers[1::2])
    if not inside:
        raise ValueError(
            f"{option} {text}: outside the frame, which is {size[1]} x {size[0]} pixels; "
            f"x goes from 0 to {size[1]}, y from 0 to {size[0]}"
        )
    if option == "--box" and (numbers[0] >= numbers[2] or numbers[1] >= numbers[3]):
        raise ValueError(f"{option} {text}: an empty box; give its top left corner first, then its bottom right one")
    return frame_idx, obj_id, numbers


def _check_frame(option: str, frame_idx: int, frames: int) -> None:
    if frame_idx >= frames:
        raise ValueError(f"{option}: there is no frame {frame_idx}; the video has frames 0 to {frames - 1}")
