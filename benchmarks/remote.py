"""Data at an address that fsspec reads, as s3://bucket/DAVIS: copied here once, whole, before it is used."""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import tempfile
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / "sam2_keyframe_data"
"""Where copies lie. Every machine has its own; what is there already is not fetched again."""


def local_copy(address: str) -> Path:
    """Return a folder here with what lies at an address; another one where names or sizes there have changed.

    Raises:
        ValueError: Nothing is there, or it cannot be read.
        ImportError: fsspec, or what it needs for this kind of address, is not installed.
    """
    try:
        import fsspec
    except ImportError:
        raise ImportError(f"--data {address}: pip install fsspec, and what it needs for this address") from None
    try:
        files, root = fsspec.core.url_to_fs(address)
        found = {path: about["size"] for path, about in files.find(root, detail=True).items()}
    except ImportError as error:
        raise ImportError(f"--data {address}: {error}") from None
    except Exception as error:  # each kind of address has errors of its own
        raise ValueError(f"--data {address} cannot be read: {type(error).__name__}: {error}") from error
    if not found:
        raise ValueError(f"--data {address}: nothing is there; give the address of a dataset's folder")
    digest = hashlib.sha256(repr((address, sorted(found.items()))).encode()).hexdigest()[:16]
    place = CACHE / digest / posixpath.basename(root.rstrip("/"))
    if place.is_dir():
        return place
    work = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        for path in found:
            target = work / posixpath.relpath(path, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(target))
        os.rename(work, place)
    except Exception as error:
        shutil.rmtree(work, ignore_errors=True)
        if not place.is_dir():  # another process was first
            raise ValueError(f"--data {address} cannot be copied: {type(error).__name__}: {error}") from error
    return place
