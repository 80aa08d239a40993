"""What `--model` names: official sizes, checkpoints in the official format, models of other hosts, the micro model."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe._checks import brief, did_you_mean
from sam2_keyframe.micro.transformers import fit_memories

CHOICES = (
    "tiny, small, base_plus, large, a checkpoint PATH.pt, a Hugging Face ID such as facebook/sam2.1-hiera-tiny, "
    "hf:ID or hf:FOLDER for a model of transformers, ultralytics:sam2.1_t.pt, micro"
)

SIZES = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
"""Official sizes and the letter that SAM 2's configuration files use for them."""

TRUNKS = {(96, 12): "tiny", (96, 16): "small", (112, 24): "base_plus", (144, 48): "large"}
"""Width and number of blocks of the image encoder's trunk, from SAM 2's configuration files."""

DOWNLOAD = "https://github.com/facebookresearch/sam2#download-checkpoints"
FILES = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"
DEMO_MODEL = "micro demo model: not for real footage"
RANDOM_MODEL = "RANDOM WEIGHTS: masks mean nothing"


def load_model(
    name: str, device: str, checkpoint: Path | None = None, image_size: int | None = None
) -> tuple[Any, str]:
    """Return a video predictor in evaluation mode, and a warning to stamp on pictures ("" for real models).

    Args:
        name: One of `CHOICES`.
        device: Where to put it, "cpu", "cuda", ...
        checkpoint: Weights for an official size; None looks in `checkpoints/`.
        image_size: Side of the square that the model sees; None leaves it as it was trained.

    Raises:
        ValueError: The name, the device or a file's contents are not what they should be.
        FileNotFoundError: There is no such checkpoint.
        ImportError: SAM 2, or the host that the name asks for, is not installed.
    """
    check_place(device, image_size)
    if name in SIZES:
        return load_checkpoint(checkpoint or _find_in_default_folder(name), device, image_size), ""
    if checkpoint is not None:
        raise ValueError(f"--checkpoint {checkpoint} goes with --model {', '.join(SIZES)}, not with {name!r}")
    if name == "micro":
        return _micro(device, image_size or 256)
    host, _, rest = name.partition(":")
    if host == "hf":
        return _from_transformers(rest, device, image_size), ""
    if host == "ultralytics":
        return _from_ultralytics(rest, device, image_size), ""
    if name.endswith((".pt", ".pth")) or Path(name).is_file():
        return load_checkpoint(Path(name), device, image_size), ""
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return _from_hub(name, device, image_size), ""
    raise ValueError(f"--model {name!r}: choose {CHOICES}{did_you_mean(name, [*SIZES, 'micro'])}")


def default_device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_place(device: str, image_size: int | None) -> None:
    """Check where and at which side a model is to run, before anything is loaded.

    Raises:
        ValueError: This machine has no such device, or no model sees squares of that side.
    """
    if image_size is not None and (image_size % 32 or not 64 <= image_size <= 1024):
        raise ValueError(f"--image-size {image_size}: give a multiple of 32 from 64 to 1024")
    remedy = "choose cpu, cuda or cuda:N of this machine"
    try:
        kind = torch.device(device).type
    except (RuntimeError, ValueError):
        known = ("cpu", "cuda", "mps", "xpu")
        raise ValueError(f"--device {device}: there is no such device; {remedy}{did_you_mean(device, known)}") from None
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # of many kinds: torch without CUDA asserts, without MPS or others it is something else
        few = torch.cuda.device_count() if kind == "cuda" else 0
        reason = f"there {'is' if few == 1 else 'are'} {few} here" if few else "this machine or this torch has none"
        raise ValueError(f"--device {device} cannot be used: {reason}; {remedy}") from error


def _micro(device: str, image_size: int) -> tuple[Any, str]:
    from sam2_keyframe import micro

    if micro.WEIGHTS.is_file():
        return micro.load_micro_predictor(device, image_size), DEMO_MODEL
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = micro.build_model(image_size).to(device).eval()
    torch.random.set_rng_state(generator)
    return model, RANDOM_MODEL


def _find_in_default_folder(size: str) -> Path:
    try:
        return find_checkpoint(size)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or name the file with --checkpoint PATH.pt") from None


def find_checkpoint(size: str, folder: Path = Path("checkpoints")) -> Path:
    """Return the file of an official size in a folder: 2.1 before 2.

    Raises:
        FileNotFoundError: There is none; the message says how to get it.
    """
    names = [f"{version}_hiera_{size}.pt" for version in ("sam2.1", "sam2")]
    for path in (folder / name for name in names):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"--model {size}: {folder / names[0]} is missing; download it from {DOWNLOAD}, as in "
        f"curl -LO --create-dirs --output-dir {folder} {FILES}/{names[0]}"
    )


def load_checkpoint(path: Path, device: str, image_size: int | None = None, postprocessing: bool = True) -> Any:
    """Return the official architecture that a checkpoint's weights fit, with them, in evaluation mode.

    Args:
        path: A file {"model": state_dict} as published.
        device: Where to put it.
        image_size: Side of the square the model sees; None: 1024.
        postprocessing: As `apply_postprocessing` of `build_sam2_video_predictor`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no weights of an official size.
    """
    weights = read_weights(path)
    config = recognise(weights, str(path))
    model = _build(config, device, image_size, postprocessing)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(
            f"--model {path}: the weights do not fit {config} ({brief(reason)}); use an official checkpoint"
        ) from None
    return model


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Return a checkpoint's weights; they are read from the file when they are used.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not in SAM 2's format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--model {path}: no such file; official checkpoints: {DOWNLOAD}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = brief((str(error) or type(error).__name__).split(". ")[0]) if _of_torch(path) else "another format"
        raise ValueError(
            f"--model {path}: not a file of weights, or a damaged one ({reason}); get it from {DOWNLOAD}"
        ) from None
    weights = stored.get("model") if isinstance(stored, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(
            f"--model {path}: not in SAM 2's format, a dict whose 'model' holds the weights; see {DOWNLOAD}"
        )
    return weights


def _of_torch(path: Path) -> bool:
    """Return whether a file is laid out as torch saves them."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("data.pkl") for name in file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def recognise(weights: Mapping[str, Tensor], path: str) -> str:
    """Return the official configuration file that weights belong to, by the trunk's shape and 2.1's extra weights.

    Raises:
        ValueError: They are of no official size.

    Source: sam2/configs of facebookresearch SAM 2: 2.1 adds `no_obj_embed_spatial` and `obj_ptr_tpos_proj`.
    """
    patches = weights.get("image_encoder.trunk.patch_embed.proj.weight")
    prefix = "image_encoder.trunk.blocks."
    blocks = {key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)}
    width = 0 if patches is None else patches.shape[0]
    size = TRUNKS.get((width, len(blocks)))
    if size is None:
        raise ValueError(
            f"--model {path}: an image encoder of width {width} with {len(blocks)} blocks is none of SAM 2's "
            f"({', '.join(SIZES)}); use an official checkpoint: {DOWNLOAD}"
        )
    version = "sam2.1" if "no_obj_embed_spatial" in weights else "sam2"
    return f"configs/{version}/{version}_hiera_{SIZES[size]}.yaml"


def _build(config: str, device: str, image_size: int | None, postprocessing: bool) -> Any:
    build = _need_sam2().build_sam2_video_predictor
    extra = _resized(image_size)
    return _without_holes(
        build(config, None, device=device, hydra_overrides_extra=extra, apply_postprocessing=postprocessing)
    )


def _from_hub(model_id: str, device: str, image_size: int | None) -> Any:
    builder = _need_sam2()
    known = sorted(builder.HF_MODEL_ID_TO_FILENAMES)
    if model_id not in known:
        raise ValueError(f"--model {model_id}: SAM 2 knows {', '.join(known)}{did_you_mean(model_id, known)}")
    extra = _resized(image_size)
    try:
        return _without_holes(
            builder.build_sam2_video_predictor_hf(model_id, device=device, hydra_overrides_extra=extra)
        )
    except ImportError:
        raise ImportError(f"--model {model_id}: pip install huggingface_hub") from None
    except Exception as error:
        reason = brief(str(error).splitlines()[0])
        raise ValueError(
            f"--model {model_id}: cannot be downloaded ({reason}); check the network, or download the checkpoint by "
            f"hand from {DOWNLOAD} and give its path"
        ) from None


VIDEO_MODELS = {
    "sam2_video": "Sam2VideoModel",
    "sam3_tracker_video": "Sam3TrackerVideoModel",
    "edgetam_video": "EdgeTamVideoModel",
}
"""Models of transformers that track what is prompted, by the kind that their configuration names."""


def _from_transformers(name: str, device: str, image_size: int | None) -> Any:
    """Return a video model of transformers, from the Hub or a folder that `save_pretrained` wrote."""
    try:
        import transformers
    except ImportError:
        raise ImportError(
            f"--model hf:{name}: transformers is not installed: pip install 'sam2-keyframe[transformers]'"
        ) from None
    if not name:
        raise ValueError("--model hf: names no model; write hf:facebook/sam2.1-hiera-tiny or hf:FOLDER")
    if image_size is not None:
        raise ValueError(
            f"--image-size {image_size}: a model of transformers sees squares of the size it was saved for"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        kind = VIDEO_MODELS.get(config.model_type)
        model = None if kind is None else _fitting(getattr(transformers, kind)).from_pretrained(name)
    except Exception as error:  # of many kinds: no network, no such model, a damaged file
        reason = brief((str(error) or type(error).__name__).splitlines()[0])
        raise ValueError(
            f"--model hf:{name} cannot be loaded ({reason}); check the name, the folder and the network"
        ) from error
    if model is None:
        raise ValueError(
            f"--model hf:{name} is a {config.model_type!r}; those that track are {', '.join(VIDEO_MODELS)}"
        )
    return model.to(device).eval()


def _fitting(model_class: Any) -> Any:
    """Return a class of transformers whose models take memories of any width."""

    def build(self: Any, config: Any) -> None:
        model_class.__init__(self, config)
        fit_memories(self)

    return type(model_class.__name__, (model_class,), {"__init__": build, "__module__": model_class.__module__})


def _from_ultralytics(name: str, device: str, image_size: int | None) -> Any:
    """Return ultralytics' SAM2VideoPredictor with its network loaded; weights that are not there it downloads."""
    try:
        from ultralytics.models.sam import SAM2VideoPredictor
    except ImportError as error:
        raise ImportError(
            f"--model ultralytics:{name}: ultralytics is not installed, or does not load ({brief(str(error))}): "
            "pip install ultralytics"
        ) from error
    if not name:
        raise ValueError("--model ultralytics: names no model; write ultralytics:sam2.1_t.pt or ultralytics:PATH.pt")
    settings = {"model": name, "imgsz": image_size or 1024, "device": device, "save": False, "verbose": False}
    try:
        predictor = SAM2VideoPredictor(overrides=settings)
        predictor.setup_model(verbose=False)
    except Exception as error:  # of many kinds: no network, no such model, a damaged file
        reason = brief((str(error) or type(error).__name__).splitlines()[0])
        raise ValueError(
            f"--model ultralytics:{name} cannot be loaded ({reason}); give a SAM 2 file that ultralytics knows, such "
            "as sam2.1_t.pt, or check the network"
        ) from error
    return predictor


def _resized(image_size: int | None) -> list[str]:
    return [] if image_size is None else [f"++model.image_size={image_size}"]


def _without_holes(model: Any) -> Any:
    """Switch hole filling off where SAM 2's compiled extension is missing: it would warn on every frame and skip it."""
    try:
        import sam2._C  # noqa: F401
    except ImportError:
        model.fill_hole_area = 0
    return model


def _need_sam2() -> Any:
    try:
        from sam2 import build_sam
    except ImportError as error:
        raise ImportError(
            "SAM 2 is not installed: pip install git+https://github.com/facebookresearch/sam2 (or pip install sam2)"
        ) from error
    return build_sam
