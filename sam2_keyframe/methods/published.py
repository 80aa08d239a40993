"""Published memory rules, and rules adapted from other systems, in our vocabulary.

Each is a function that returns a `KeyframeMemory`: for several objects, in both directions, with bounded memory. Where
that differs from what the authors' code does, the docstring says so. No code was taken from anywhere.
"""

from __future__ import annotations

from sam2_keyframe.attention.maths import Modulated
from sam2_keyframe.memory import KeyframeMemory, Keyframes, LongTerm, Prompts, Ranked, Recent, check_bool
from sam2_keyframe.rules.adaptive import SceneBoundary, StableArea
from sam2_keyframe.rules.eviction import LeastUsed, MostSimilar, RelevanceFreshness
from sam2_keyframe.rules.filters import EffectiveScore, EveryNth, Frames, MinGap, Visible
from sam2_keyframe.rules.motion import Kalman
from sam2_keyframe.rules.retrieval import DropRedundant, MostAlike, Reconstruct
from sam2_keyframe.rules.tree import Tree
from sam2_keyframe.rules.verify import Backward
from sam2_keyframe.scorers import Area, Distractor, Histogram, KalmanOverlap, MaskQuality, PredictedIoU

SHOWN = Area() > 0
"""The chosen mask is not empty."""


# -- published on SAM 2 -----------------------------------------------------------------------------------------------


def stride(r: int = 5) -> KeyframeMemory:
    """The newest frame, and the last five on the grid of multiples of r, at their slots.

    Bit-identical to SAM 2 with `memory_temporal_stride_for_eval=r`. The grid counts from frame 0 of the video, so
    results shift with where a clip was cut.

    Source: Ravi et al. 2408.00714; sam2/modeling/sam2_base.py, _prepare_memory_conditioned_features (Apache-2.0).
    SAM 2 keeps every frame; this keeps what the next frames will read.
    """
    return KeyframeMemory(Recent(1, every=r), codes="slot", protect_corrections=False)


def samurai(kalman: bool = False, weight: float = 0.25, quality: float = 0.5) -> KeyframeMemory:
    """The newest frame, and the last five of predicted IoU > 0.5 on which the object is visible. Pointers as in SAM 2.

    Args:
        kalman: Also choose among the decoder's masks by motion, and reject frames on which the chosen mask does not
            overlap the prediction.
        weight: How much the motion counts in that choice: 0.25 for the tiny, small and base models, 0.15 for large.
        quality: Bound on the predicted IoU.

    Source: Yang et al. 2411.11922; yangchris11/samurai, sam2/modeling/sam2_base.py (Apache-2.0). There: reverse
    tracking and prompts later than frame 0 raise KeyError, frame 1 is never accepted, one filter is shared by all
    objects and videos, an empty mask updates it with a box of zeros, and its configurations also lower the threshold
    of visibility to -1, which is not part of the selection and not done here.
    """
    check_bool("kalman", kalman)
    good, motion = Visible() & (PredictedIoU() > quality), Kalman(weight)
    if not kalman:
        return KeyframeMemory(Recent(1), Keyframes(5, good), fill=False)
    return KeyframeMemory(Recent(1), Keyframes(5, good & (KalmanOverlap() > 0)), fill=False, choice=motion)


def sam2long(theta: float = 0.3) -> KeyframeMemory:
    """The newest frame, and the last five of predicted IoU > theta on which the object is visible; a single path.

    The pointers of the last 15 such frames are read, each at its rank instead of its distance in time.

    Args:
        theta: Bound on the predicted IoU: 0.3 in the paper, 0.1 in the published commands.

    Keys are modulated by the object scores; `attend=Whole()` leaves that out, as the compiled predictor (VOS) needs.

    Source: the selection and modulation of Ding et al. 2410.16268 (CC-BY-NC-4.0; the rule was read, no code taken). The
    tree of three paths is `sam2long_tree`. There: one object, one prompt, forward; the oldest accepted pointer is
    dropped.
    """
    good = Visible() & (PredictedIoU() > theta)
    return KeyframeMemory(Recent(1), Keyframes(5, good), fill=False, pointers=Ranked(good), attend=Modulated())


def sam2long_tree(theta: float = 0.1, sure: float = 2.0, paths: int = 3, lag: int = 0) -> KeyframeMemory:
    """SAM2Long whole: three paths, each with the memories of `sam2long`, of which the likeliest go on at each frame.

    `sam2long` is one such path. At most 1 + 6 x 3 memories and 15 x 3 pointers are held with one prompt; a frame on
    which the paths differ costs one pass of attention, decoder and memory encoder for each, the backbone once.

    Args:
        theta: As in `sam2long`; the published commands have 0.1.
        sure: The object score, either side of 0, above which SAM 2 is sure: there the best three candidates go on, and
            below it the best three that differ.
        paths: How many.
        lag: How many frames late masks are shown, along the path that is the best by then.

    Source: as `sam2long`; see `Tree` for what differs.
    """
    return sam2long(theta).with_choices(tree=Tree(paths, sure, lag))


def dam4sam_ram() -> KeyframeMemory:
    """The recent appearance memory of DAM4SAM alone: frames with an empty mask are skipped, older ones lie 5 apart.

    Read are the newest frame whose mask is not empty and five older ones on the grid of multiples of 5, and the
    pointers of frames whose mask is not empty.

    Source: Videnovic et al. 2411.17576; jovanavidenovic/DAM4SAM (no licence; the rule was read, no code taken). There:
    forward, one object, the prompt on frame 0. Masks count at a quarter of the model's resolution here.
    """
    return KeyframeMemory(Recent(6, SHOWN, every=5), pointers=SHOWN)


def dam4sam() -> KeyframeMemory:
    """DAM4SAM: recent appearance (`dam4sam_ram`) and, as anchors, the last three frames that resolve a distractor.

    A frame becomes an anchor when its predicted IoU exceeds 0.8, its area lies within 20 % of the median of the last
    ten, more than 5 frames have passed since the last anchor, and a rejected candidate mask shows a distractor: united
    with the chosen mask, its box has an IoU of at most 0.7 with the chosen one's. Prompts, anchors and recent
    appearance together are at most `num_maskmem`.

    Source: as `dam4sam_ram`; anchors by its tracker's introspection test. There: unbounded memory, forward, one object,
    the prompt on frame 0, areas and boxes at video resolution; a recent slot without a frame can cost a scan to the
    start.
    """
    return KeyframeMemory(Recent(6, SHOWN, every=5), Keyframes(3, ANCHOR, code="prompt"), pointers=SHOWN)


ANCHOR = (PredictedIoU() > 0.8) & SHOWN & StableArea() & (Distractor() > 0.3 - 1e-6) & MinGap(6, prompts=False)
"""The frame resolves a distractor."""


def d4sm() -> KeyframeMemory:
    """DAM4SAM, bounded: as `dam4sam`, but an anchor's pointer is read only while it is among SAM 2's t-1 .. t-15.

    Over a long occlusion those run out, where upstream keeps the pointers of the last 15 visible frames.

    Source: alanlukezic/d4sm (Apache-2.0), the bounded multi-object version of DAM4SAM. There pointers are coded by
    rank, gaps in the temporal codes count the anchors in between, and reverse is not handled.
    """
    return KeyframeMemory(Recent(6, SHOWN, every=5), Keyframes(3, ANCHOR, code="anchor"), pointers=SHOWN)


def sam3() -> KeyframeMemory:
    """SAM 3's frame filter: the newest frame, and the last five whose effective score exceeds 0.01.

    The effective score is max(0, 2 sigmoid(object score) - 1) x predicted IoU. The pointers of the last 15 such frames
    are read, each at its rank. At most four prompted frames are attended to, the nearest.

    Source: facebookresearch/sam3, sam3_tracker_base.py (SAM License; the rule was read, no code taken). There the score
    is averaged over objects, memories are trimmed at two ages and only forward (here what is not read leaves at once),
    and the oldest accepted pointer is dropped. With a score of its own for each object, as here, the rule is that of
    SAM3-DMS (2601.09699; FudanCVL/SAM3-DMS, sam3_video_base.py).
    """
    good = EffectiveScore(0.01)
    prompts = Prompts(4, keep_first=False)
    return KeyframeMemory(Recent(1), Keyframes(5, good), fill=False, pointers=Ranked(good), prompts=prompts)


def surgical(drop: int = 2) -> KeyframeMemory:
    """Surgical SAM 2: of seven memories, the two most similar to the newest are left out. Pointers as in SAM 2.

    Source: Liu et al. 2408.07931; jinlab-imvr/Surgical-SAM-2, sam2/modeling/sam2_base.py (no licence; the rule was
    read, no code taken). There the first memory is exempt and other prompts are not, nothing is evicted, and the
    published speed belongs to a fine-tuned model at 512 px.
    """
    read = DropRedundant(drop, in_reach=True)
    return KeyframeMemory(Recent(1), Keyframes(5, read=read), fill=False, codes="slot")


def rcms(n: int = 4, quality: float = 0.6, gap: int = 1) -> KeyframeMemory:
    """SAM 2's last six; and, from the first disappearance on, the last four trustworthy frames before it, as prompts.

    A frame is trustworthy where `MaskQuality` exceeds 0.6: sureness that the object is there x the best predicted IoU x
    the mean probability inside the mask. When the object is first held hidden, the newest such frames are read with
    the code and the pointers of prompted frames, and not in their slots, for as long as the object is tracked.

    Args:
        n: How many frames are promoted: 4 in the source's description, 3 by default in its class.
        quality: Bound on `MaskQuality`.
        gap: Least distance between them. At 1, as published, they are neighbours, nearly equal; another is ours.

    Source: Ding et al. 2508.05630; henghuiding/MOSE-api, MOSEv2/sam2_rcms (Apache-2.0). There: frames are looked for
    forward alone, back to the start of the video, so that all are kept. A pass in the other direction begins anew here.
    """
    good = (MaskQuality() > quality) & MinGap(gap, prompts=False)
    return KeyframeMemory(Recent(6), Keyframes(n, good, code="prompt", once=~Visible()), fill=False, codes="slot")


def samite(kalman: bool = True, weight: float = 0.25, alike: float = 0.3) -> KeyframeMemory:
    """The newest frame and, of the last 30 that `samurai` accepts, the five most like it and the first prompt.

    Likeness is the cosine of the image embedding averaged inside the mask, 0.3 x with the newest accepted frame + 0.7 x
    with the first prompt. The newest accepted frame is read in any case. Prompts and all others are at most
    `num_maskmem`. Pointers as in SAM 2.

    Args:
        kalman: Also choose among the decoder's masks by motion, and reject frames as `samurai` does.
        weight: How much the motion counts in that choice.
        alike: Share of the newest accepted frame in the likeness.

    Source: the selection of 2507.21732, read in a copy bundled with HamadYA/SENTRY (no licence; no code was taken). The
    authors' own code was not read, and their position prompts, to which their figures belong as well, are not in it.
    There: the newest frame is not read where it was rejected, and reverse and later prompts raise KeyError.
    """
    method = samurai(kalman, weight)
    good = method.keyframes.when
    held = Keyframes(29, good, read=MostAlike(alike, good))
    return KeyframeMemory(Recent(1), held, fill=False, choice=method.choice)


def sentry(agree: float = 0.65, gain: float = 0.15) -> KeyframeMemory:
    """SAM 2's last six; a doubtful mask is tracked back over the last nine frames before it is believed.

    Where another mask agrees better with the boxes that were chosen then, that is shown and remembered instead, under
    the pointer that SAM 2 made. `verify=Backward()` does the same to any other method, `samurai` and `dam4sam` among
    them. A check costs nine frames of memory attention, decoder and memory encoder for each mask it looks at.

    Args:
        agree: Least mean box IoU of the mask tracked back.
        gain: By how much it has to exceed that of the mask that SAM 2 chose.

    Source: 2606.24449; see `Backward` for the rule and what differs.
    """
    verify = Backward(agree=agree, gain=gain)
    return KeyframeMemory(Recent(1), codes="slot", protect_corrections=False, verify=verify)


# -- adapted from other systems: training-free analogues, not the originals --------------------------------------------


def rmem_style(n: int = 5) -> KeyframeMemory:
    """After RMem: every n-th visible frame; of those held, the least relevant and least fresh leaves.

    Relevance is the share of a proxy of SAM 2's attention, smoothed; freshness an upper confidence bound.

    Source: Zhou et al. 2406.08476 (CVPR 2024), Restricted-Memory/RMem (MIT), made for AOT and DeAOT with trained
    temporal codes. Capacity 5 and the newest frame here, 8 there.
    """
    return KeyframeMemory(Recent(1), Keyframes(5, Visible() & EveryNth(n), evict=RelevanceFreshness()), fill=False)


def xmem_style(n: int = 5) -> KeyframeMemory:
    """After XMem: every n-th visible frame is working memory; the least used leaves, merged into long-term memory.

    Merging is cell by cell, weighted by usage (a proxy of SAM 2's attention), five frames into one, two such held.

    Source: Cheng and Schwing 2207.07115 (ECCV 2022), hkchengrex/XMem (MIT), made for a network trained with it, where
    128 prototype tokens are kept. That a merged memory helps SAM 2 is claimed by nobody.
    """
    working = Keyframes(5, Visible() & EveryNth(n), evict=LeastUsed())
    return KeyframeMemory(Recent(1), working, LongTerm(2, of=5), fill=False)


def stremn_style(n: int = 5) -> KeyframeMemory:
    """After STReMN: every n-th visible frame is written, once the slots are full over the one most similar to it.

    Source: Space Time Recurrent Memory Network, 2109.06474, where a learned Gumbel-Softmax chooses the slot.
    """
    return KeyframeMemory(Recent(1), Keyframes(5, Visible() & EveryNth(n), evict=MostSimilar()), fill=False)


def rmscl_style(n: int = 5) -> KeyframeMemory:
    """After RMSCL: of 32 frames held, those that reconstruct the newest one by few non-negative coefficients are read.

    Every n-th visible frame is held. The newest frame stands for the current one, which saves a wait for the device.

    Source: Nazemi et al. 2309.15274, abstract only; there memory is selected for online fine-tuning, not for attention.
    """
    return KeyframeMemory(Recent(1), Keyframes(32, Visible() & EveryNth(n), read=Reconstruct()), fill=False)


# -- ours -------------------------------------------------------------------------------------------------------------


def scene_hsv(above: float = 0.35) -> KeyframeMemory:
    """Keyframes on both sides of a scene boundary: the last trustworthy frame before it, the first one after it.

    Source: the detector of SeC (OpenIXCLab/SeC, inference/modeling_sec.py, Apache-2.0): Bhattacharyya distance of
    hue-saturation histograms of neighbouring frames. Its use on SAM 2's memory is ours.
    """
    good = Visible() & (PredictedIoU() > 0.5)
    cut = SceneBoundary(Histogram(bins=(60, 80), reference="previous"), above)
    return KeyframeMemory(Recent(1), Keyframes(5, good & cut, before=good))


def genetic(frames: tuple[int, ...] = ()) -> KeyframeMemory:
    """Given frames, as anchors, once they were tracked; found offline, so **not causal**.

    Args:
        frames: What `choose_frames` found on a first pass over the same video.

    Raises:
        ValueError: No frames are given.
        TypeError: They are no tuple or list.
    """
    if not isinstance(frames, tuple | list):
        raise TypeError(f"frames={frames!r}: give frame numbers, as in (3, 41)")
    if not frames:
        raise ValueError(
            "genetic() needs the frames that a search found on a first pass: choose_frames() on a Recording's "
            "descriptors, then wrap(predictor, 'genetic', frames=...); `track --method genetic` makes both passes"
        )
    return KeyframeMemory(Recent(1), Keyframes(len(frames), Frames(tuple(frames)), code="anchor"), fill=False)


PUBLISHED = (stride, samurai, sam2long, sam2long_tree, dam4sam, dam4sam_ram, d4sm, sam3, surgical, rcms, samite, sentry)
ADAPTED = (rmem_style, xmem_style, stremn_style, rmscl_style)
OURS = (scene_hsv, genetic)
NON_CAUSAL = frozenset({"genetic"})
"""Methods that use what lies ahead, by name: an upper reference, never in one column with the others."""
