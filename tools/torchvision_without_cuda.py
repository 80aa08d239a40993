"""Import torchvision's Python part beside a CPU build of torch, where its compiled part, made for CUDA, does not load.

The operators of that part are declared, not made: whoever calls one gets an error. What the hosts use needs none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from pathlib import Path

import torch

DECLARED = torch.library.Library("torchvision", "DEF")


def declare() -> None:
    """Declare the operators that torchvision registers shapes for, unless its compiled part declared them."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or torch.cuda.is_available():
        return
    source = Path(found.origin).with_name("_meta_registrations.py").read_text()
    for pair in re.findall(r'register_meta\("(\w+)"|register_fake\("torchvision::(\w+)"', source):
        with contextlib.suppress(RuntimeError):
            DECLARED.define(f"{''.join(pair)}(Tensor a) -> Tensor")
