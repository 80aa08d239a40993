"""The memory bank of one object: SAM 2's stored frames, what of them is attended to, and what leaves.

`Selection` decides on records, `Store` holds what SAM 2 stores; the bank carries frames between them and SAM 2. It
checks the store against the host before every read, and lets go what the method does not retain.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe.attention.queries import NearObject
from sam2_keyframe.bank.decisions import Pending, Selection
from sam2_keyframe.bank.reading import Geometry, Reading, allowed_prompts, assign_codes, closest, plan_reading
from sam2_keyframe.bank.statistics import STORED, FrameStats, MemoryStats, Occupancy, baselines, has_memory
from sam2_keyframe.bank.store import Entry, MergedMemories, Store
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.rules.motion import Track
from sam2_keyframe.rules.returns import Returns
from sam2_keyframe.rules.verify import Watch
from sam2_keyframe.types import Held, Memory, Moment, Reference, TrackedFrame

KEY = "_keyframe"
"""Under which a bank lies beside its object's frames, and what all objects share in the host's state."""

NO_OBJECT = -1024.0
"""Logits of an object that is not there, as in SAM 2 (sam2/modeling/sam2_base.py, NO_OBJ_SCORE)."""

RELEASED = "released"
"""Owner of a bank whose wrapping was undone."""


class Listener(Protocol):
    """Is told of every frame that a bank takes in, with all that scorers look at, whatever the method measures."""

    def prompted(self, bank: MemoryBank, frame_idx: int, frame: TrackedFrame | None, cond: bool) -> None:
        """Take note of a frame that was prompted (`cond`), or corrected after it was tracked."""
        ...

    def tracked(self, bank: MemoryBank, moment: Moment, frame: TrackedFrame | None) -> None:
        """Take note of a tracked frame; None where it is a corrected one that stays as it is."""
        ...

    def taken_back(self, bank: MemoryBank, frame_idx: int) -> None:
        """Take note of a frame that is an ordinary one again."""
        ...


class Owner:
    """The wrapping that banks belong to: a bank that held the patch would keep the model alive.

    Attributes:
        listeners: Who is told of the frames that its banks take in.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []


class MemoryBank:
    """One object's memory under one method.

    Args:
        method: The choices.
        owner: Whoever made the bank; a bank of another owner is replaced, not read.
        non_cond: The host's dict of tracked frames. What it holds already is adopted.
    """

    def __init__(self, method: KeyframeMemory, owner: object, non_cond: MutableMapping[int, Entry]) -> None:
        self.method = method
        self.owner = owner
        self.non_cond = non_cond
        self.store = Store(non_cond, method.store == "all", method.keep_masks)
        self.selection = Selection(method, self.store.usable)
        self.stats = MemoryStats()
        self.track = None if method.choice is None else Track(method.choice)
        self.returns = None if method.confirm is None else Returns(method.confirm)
        self.watch = None if method.verify is None else Watch(method.verify)
        self.long_term = MergedMemories(method.long_term.n, method.long_term.of)
        self.fresh: int | None = None  # the frame just tracked, which the host stores when we return
        self.pending: Pending | None = None
        self.retrieved: tuple[Sequence[int], Tensor] | None = None  # what the device chose for the frame being tracked
        self.span = (min(non_cond), max(non_cond)) if non_cond else None  # first and last frame tracked
        self.evicted: list[int] = []
        self.absent: set[int] = set()  # frames before the first prompt, which were not tracked
        self.keyframes: tuple[int, ...] = ()  # in the buffer as the frame being tracked is read for
        self.paths: list[Path] = []  # of a tree, the best first, which is this one; empty until a frame is tracked
        self.as_prompted: Tensor | None = None  # the frame observed last, encoded as a prompted one, until decided

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and saved with the host's state: nothing is on its way, and no wrapping owns it."""
        self.settle()
        self.store.land()
        return {**vars(self), "owner": RELEASED if self.owner is RELEASED else None}

    @property
    def listeners(self) -> list[Listener]:
        """Who is told of the frames that are taken in."""
        return self.owner.listeners if isinstance(self.owner, Owner) else []

    # -- before a frame is tracked ------------------------------------------------------------------------------

    def begin(self, moment: Moment) -> None:
        """Take up tracking at `moment`: what lies ahead in this direction will be tracked again, so it leaves."""
        if self.selection.restarts(moment):
            self.settle()
            self.long_term.clear()
            self._restart()
        self.selection.begin(moment)

    def _restart(self) -> None:
        """Forget where the object was, that it was gone, and all paths but one."""
        self.paths = []
        if self.watch is not None:
            self.watch.clear()
        for following in (self.track, self.returns):
            if following is not None:
                following.reset()

    def plan(
        self,
        cond: Mapping[int, Entry],
        moment: Moment,
        geometry: Geometry,
        grid: tuple[int, int],
        device: torch.device,
        image_embed: Tensor | None = None,
        tracking: bool = True,
    ) -> Reading:
        """Return what is to be read at a frame, once the frame before is decided.

        Args:
            cond: The host's prompted frames.
            moment: The frame to be tracked.
            geometry: How far the model reads.
            grid: (h, w) of a spatial memory.
            device: Where attention runs.
            image_embed: (1, C, H/16, W/16) features of the frame to be tracked.
            tracking: Whether the frame is tracked; False where SAM 2 infers a click, which moves nothing.
        """
        self.settle()
        self.reconcile(cond)
        if tracking:
            self._age(moment)
            self.keyframes = self.selection.in_buffer()
        # Where nothing is prompted yet, a click is inferred from what is to come; no frame is tracked there.
        prompts = allowed_prompts(cond, self.method.prompts, moment) or cond
        read = closest(moment.frame_idx, prompts, geometry.prompts)
        memories = self._choose(moment, len(read), image_embed)
        prompted = any(moment.distance(idx) >= 0 for idx in cond)
        pointers = self.selection.pointers(moment, self.non_cond.keys() - self.absent, prompted)
        own = {memory.frame_idx for memory in memories if memory.pointer}
        pointers = {place: idx for place, idx in pointers.items() if idx not in own}
        attend, plans, queries = self.method.attend, self.store.plans, None
        if isinstance(self.method.queries, NearObject):
            near = self.selection.near(moment) if tracking else ()
            queries = self.method.queries.plan(grid, *near)
        return plan_reading(
            memories, pointers, prompts, read, moment, geometry, grid, attend, plans, device, queries, self.non_cond
        )

    def reconcile(self, cond: Mapping[int, Entry]) -> None:
        """Follow the host: an entry it replaced is new, one it prompted or dropped is forgotten."""
        self.fresh = None
        for frame_idx in self.store.replaced():
            self._forget(frame_idx)
        self.store.drop_plans(but=lambda idx: idx in cond or idx in self.non_cond)
        prompts = self.selection.prompts
        self.selection.prompts = {idx: reference for idx, reference in prompts.items() if idx in cond}

    def _choose(self, moment: Moment, prompts: int, image_embed: Tensor | None) -> list[Memory]:
        newest, held, count = self.selection.choose(moment, prompts)
        attended, code = held[:count], self.method.keyframes.code
        codes = assign_codes(self.method.codes, code, newest, attended, self.method.grid(moment))
        memories = [Memory(idx, self.store.entry(idx), codes[idx]) for idx in newest]
        self.retrieved = None
        if len(held) > count > 0 and image_embed is not None:
            entries = self._retrieve(held, count, image_embed)
            memories += [Memory(None, entry, codes[idx]) for idx, entry in zip(attended, entries, strict=True)]
        else:
            memories += [Memory(idx, self.store.entry(idx), codes[idx], code == "prompt") for idx in attended]
        return memories + [Memory(None, entry, moment.slots) for entry in self.long_term.entries]

    def _retrieve(self, held: list[int], count: int, image_embed: Tensor) -> list[Entry]:
        """Let the device choose `count` of the memories held, nearest first, and gather their features there."""
        empty = Reference(-1, {})
        references = [self.selection.references.get(idx, empty) for idx in held]
        relevance: Tensor = self.method.keyframes.read.relevance(image_embed, references)  # type: ignore[attr-defined]
        chosen = relevance.topk(count).indices.sort().values
        self.retrieved = held, chosen
        entries = [self.store.entry(idx) for idx in held]
        features = torch.cat([e["maskmem_features"].to(image_embed.device) for e in entries]).index_select(0, chosen)
        gathered = zip(entries[:count], features.tensor_split(count), strict=True)
        return [{**entry, "maskmem_features": features} for entry, features in gathered]

    def _held(self, cond: Mapping[int, Entry], moment: Moment) -> list[Held]:
        """Return the prompted frames and the frames held, which a frame just tracked is related to."""
        selection, device = self.selection, self.store.entries[moment.frame_idx]["obj_ptr"].device

        def features(frame_idx: int) -> Tensor:
            entry = cond[frame_idx] if frame_idx in cond else self.store.entry(frame_idx)
            tensor: Tensor = entry["maskmem_features"]
            return tensor.to(device)

        known = {**selection.prompts, **selection.references}
        frames = [*cond, *(idx for idx in selection.held() if self.store.usable(idx) and idx != moment.frame_idx)]
        past = filter(moment.past, frames)
        return [Held(idx, partial(features, idx), known.get(idx)) for idx in past]

    # -- after a frame is tracked -------------------------------------------------------------------------------

    def observe(self, entry: Entry, frame: TrackedFrame | None, moment: Moment, cond: Mapping[int, Entry]) -> None:
        """Take in a tracked frame; its scores go to the host without waiting for them."""
        self.settle()
        frame_idx = moment.frame_idx
        self._forget(frame_idx)
        self.store.put(frame_idx, entry)
        self.fresh = frame_idx
        held = [] if frame is None or self.method.relation is None else self._held(cond, moment)
        self.pending = self.selection.send(frame, moment, cond, held, self.retrieved)

    def settle(self) -> None:
        """Decide the frame observed last, once its numbers are here."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        record, kept = self.selection.decide(pending)
        self.stats.keyframes += kept
        if kept and self.as_prompted is not None and self.store.usable(record.frame_idx):
            self.store.entries[record.frame_idx]["maskmem_features"] = self.as_prompted
        self.as_prompted = None
        row = self.stats.last
        if row is not None and row.frame_idx == record.frame_idx:
            row.scores, row.keyframe = record.scores, kept
            if self.method.significance is not None:
                row.significance = record.scores.get(self.method.significance.name, float("nan"))
            row.attended = tuple(sorted([*row.attended, *pending.chosen]))
            row.evicted = tuple(self.evicted)
            self.evicted.clear()

    def pass_over(self, frame_idx: int, moment: Moment) -> Entry | None:
        """Return a corrected frame's entry that is not to be tracked over again, and go on behind it; or None."""
        entry = self.store.entries.get(frame_idx)
        there = entry is not None and self.non_cond.get(frame_idx) is entry and has_memory(entry)
        if not there or frame_idx not in self.selection.corrected:
            return None
        self.settle()
        self.paths = []
        self.selection.pass_over(frame_idx)
        self.trim(moment.then())
        for listener in self.listeners:
            listener.tracked(self, moment, None)
        return entry

    def not_yet(self, cond: Mapping[int, Entry], moment: Moment) -> Entry | None:
        """Return an empty entry where the object is absent, as no prompt is behind; None where the frame is tracked."""
        self.absent.discard(moment.frame_idx)
        if self.method.prompts.future or any(moment.distance(idx) >= 0 for idx in cond):
            return None
        self.settle()
        self._forget(moment.frame_idx)
        self.store.forget(moment.frame_idx)
        self.absent.add(moment.frame_idx)
        like = next(iter(cond.values()))
        masks, score, features = like["pred_masks"], like["object_score_logits"], like["maskmem_features"]
        return {
            "maskmem_features": (blank := features.new_empty((*features.shape[:2], 0, features.shape[3]))),
            "maskmem_pos_enc": [blank],
            "pred_masks": masks.new_full((), NO_OBJECT).expand(masks.shape),
            "obj_ptr": torch.zeros_like(like["obj_ptr"]),
            "object_score_logits": torch.full_like(score, NO_OBJECT),
        }

    def taken_back(self, frame_idx: int, entry: Entry) -> None:
        """Follow the host where the user took back a frame's prompts or corrections: it is an ordinary one again."""
        self.settle()
        self.paths = []
        self._forget(frame_idx)
        self.store.put(frame_idx, entry)
        for listener in self.listeners:
            listener.taken_back(self, frame_idx)

    def let_go_corrections(self, most: int) -> None:
        """Protect the newest `most` corrected frames alone."""
        for frame_idx in sorted(self.selection.corrected)[:-most]:
            self._forget(frame_idx)

    def prompted(self, frame_idx: int, entry: Entry, frame: TrackedFrame | None, cond: bool) -> None:
        """Take in a frame that the user prompted or corrected; `frame` is None where its pixels are not at hand.

        A prompted frame is what later ones are compared with; a corrected one becomes a keyframe unasked.
        """
        self.settle()
        self._restart()
        self._forget(frame_idx)
        self.store.forget(frame_idx)
        reference = None
        if frame is not None and self.method.observes:
            self.selection.measure(frame)
            reference = frame.reference()
        if cond and reference is not None:
            self.selection.prompts[frame_idx] = reference
        if not cond:
            self.store.put(frame_idx, entry)
            if self.method.keyframes.n or self.method.protect_corrections:
                self.stats.keyframes += 1
                self.selection.correct(frame_idx, reference)
        self.tell(frame_idx, frame, cond)

    def tell(self, frame_idx: int, frame: TrackedFrame | None, cond: bool) -> None:
        """Tell those who listen of a prompted or corrected frame."""
        for listener in self.listeners:
            listener.prompted(self, frame_idx, frame, cond)

    def _age(self, moment: Moment) -> None:
        """Compress the frames that entered a buffer, consolidate and forget those that left it."""
        entered, gone = self.selection.age(moment)
        for record in gone:
            if self.method.long_term.n and self.store.usable(record.frame_idx):
                self.long_term.add(self.store.entry(record.frame_idx), record.usage)
            self.evicted.append(record.frame_idx)
            self.stats.evicted += 1
        held = set(self.selection.held())
        for frame_idx, keyframe in entered:
            if frame_idx in held:
                self.store.compress(frame_idx, (self.method.keyframes if keyframe else self.method.others).codec)

    def _forget(self, frame_idx: int) -> None:
        self.selection.forget(frame_idx)
        if self.pending is not None and self.pending.frame_idx == frame_idx:
            self.pending = None

    # -- several paths ------------------------------------------------------------------------------------------

    def fork(self) -> MemoryBank:
        """Return a bank that goes on by itself from here, with frames of its own; what both hold is stored once."""
        bank = MemoryBank(self.method, self.owner, {})
        bank.store = self.store.fork(bank.non_cond)
        bank.selection = self.selection.fork(bank.store.usable)
        bank.span, bank.absent, bank.evicted = self.span, set(self.absent), list(self.evicted)
        bank.keyframes, bank.retrieved = self.keyframes, self.retrieved
        return bank

    def go_on(self, paths: list[Path]) -> None:
        """Go on with these paths, as the best of them: the host is shown its frames."""
        self.paths, best = paths, paths[0].bank
        for frame_idx, masks in paths[0].masks.items():
            if frame_idx in self.non_cond:
                self.non_cond[frame_idx]["pred_masks"] = masks
        if best is self:
            return
        self.store.land()
        for frame_idx, entry in list(self.store.entries.items()):
            if frame_idx not in best.non_cond and self.non_cond.get(frame_idx) is entry:
                self.store.drop_memory(frame_idx, entry)
                self.store.drop_entry(frame_idx, entry)
        self.non_cond.update(best.non_cond)
        mine = ("method", "owner", "non_cond", "stats", "track", "watch", "returns", "paths")
        vars(self).update({name: value for name, value in vars(best).items() if name not in mine})
        self.store.non_cond, self.store.keep_masks = self.non_cond, self.method.keep_masks
        paths[0].bank = self

    # -- what leaves --------------------------------------------------------------------------------------------

    def trim(self, moment: Moment) -> None:
        """Let go what the frame at `moment`, the next one, will neither read nor hold."""
        self.store.land()
        self._age(moment)
        wanted = {*self.selection.to_come(moment), *self.selection.held()}
        wanted |= {idx for idx in (self.fresh, self.selection.before_keyframe()) if idx is not None}
        grid = self.method.grid(moment)
        if grid.stride > 1 and self.method.recent.when is None and (self.method.fill or self.method.newest > 1):
            on_grid = [idx for idx in self.store.entries if idx % grid.stride == 0]
            wanted |= set(on_grid) & set(moment.behind(grid.reach))
        trusted = set(self.selection.trusted)
        pointing, in_reach = moment.behind(moment.pointers), moment.behind(moment.reach)
        for frame_idx, entry in list(self.store.entries.items()):
            near = frame_idx in trusted or (frame_idx in pointing and self.method.tree is None)
            if self.method.store == "all":
                if frame_idx not in wanted and not near:
                    self.store.forget(frame_idx)
                continue
            if frame_idx not in in_reach:
                self.store.move_masks(frame_idx, entry)
            if frame_idx in wanted:
                continue
            if self.store.usable(frame_idx):
                self.store.drop_memory(frame_idx, entry)
            if not near:
                self.store.drop_entry(frame_idx, entry)
        self.store.drop_plans(but=lambda idx: idx in wanted or idx not in self.non_cond)  # prompts stay
        self.selection.trim(moment)

    def tells_of(self, non_cond: Mapping[int, Entry]) -> bool:
        """Return whether all tracked frames that the host holds were tracked with this bank."""
        first, last = self.span or (0, -1)
        apart = {*self.selection.corrected, *self.absent}
        return all(first <= frame_idx <= last or frame_idx in apart for frame_idx in non_cond)

    # -- what it takes ------------------------------------------------------------------------------------------

    def account(
        self,
        cond: Mapping[int, Entry],
        alone: Collection[int],
        moment: Moment,
        reading: Reading | None,
        since: float,
        geometry: Geometry,
        tokens: int | None = None,
    ) -> None:
        """Add the row of the frame just tracked to the statistics.

        Args:
            cond: The host's prompted frames.
            alone: Those of them that SAM 2 alone would have attended to.
            moment: The frame.
            reading: What was read; None where nothing was.
            since: `time.perf_counter()` when its tracking began; NaN where no time was taken.
            geometry: How far the model reads, and what it stores.
            tokens: Keys that were read on the frame, where it was read along more paths than one.
        """
        entry = self.store.entries[moment.frame_idx]
        device: torch.device = entry["obj_ptr"].device
        first, last = self.span or (moment.frame_idx, moment.frame_idx)
        self.span = min(first, moment.frame_idx), max(last, moment.frame_idx)
        points, beside = geometry.every_prompt_points, geometry.beside_nbytes
        stock, window = baselines(entry, self.span, cond, alone, moment, points, beside)
        frames, nbytes, host_nbytes = self.store.takes(entry, cond, moment.frame_idx, device)
        kept = [*self.store.tensors(), *self.long_term.tensors()]
        kept += [] if self.as_prompted is None else [self.as_prompted]
        kept += [] if self.watch is None or self.watch.mask is None else [self.watch.mask]
        kept += [t for r in self.selection.references_kept(self.pending) for t in r.values.values()]
        if self.paths:
            memories, tensors = self._beside()
            frames, kept = frames + memories, kept + tensors
        for tensor in {id(t): t for t in kept}.values():
            if tensor.device == device:
                nbytes += tensor.nbytes
            else:
                host_nbytes += tensor.nbytes
        attended, read = (reading.attended, reading.tokens) if reading is not None else ((), 0)
        queries = reading.queries if reading is not None else 0
        memory = Occupancy(frames + len(self.long_term), nbytes, read if tokens is None else tokens)
        milliseconds = 1000 * (time.perf_counter() - since)
        row = FrameStats(moment.frame_idx, memory, stock, window, attended, milliseconds, host_nbytes, queries)
        row.keyframes = self.keyframes
        self.stats.add(row)

    def _beside(self) -> tuple[int, list[Tensor]]:
        """Return how many memories other paths hold that this one does not, and the tensors that they consist of."""
        known = {id(e[key]) for e in self.store.entries.values() for key in STORED if key in e}
        memories, kept = 0, []
        for path in self.paths[1:]:
            kept += path.bank.store.tensors()
            kept += [t for r in path.bank.selection.references_kept(path.bank.pending) for t in r.values.values()]
            entries = path.bank.store.entries.values()
            own = {id(e[key]): (key, e[key]) for e in entries for key in STORED if key in e and id(e[key]) not in known}
            memories += sum(key == "maskmem_features" and tensor.numel() > 0 for key, tensor in own.values())
            kept += [tensor for _, tensor in own.values()]
            known |= own.keys()
        known |= {id(masks) for masks in self.paths[0].masks.values()}  # those that the host stores
        kept += [m for path in self.paths[1:] for m in path.masks.values() if id(m) not in known]
        return memories, kept


@dataclass(slots=True)
class Path:
    """One path of a tree.

    Attributes:
        bank: Its memory.
        score: As in `Branch`.
        places: As in `Branch`.
        masks: Its mask logits of the last frames, where they are shown late.
    """

    bank: MemoryBank
    score: float = 0.0
    places: tuple[int, ...] = (0,)
    masks: dict[int, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Tracking:
    """One object on one frame while the host tracks it: what its wrappers learn, and what is done with it.

    A host makes it with `Tracking.begin` before it tracks the frame, asks it for the `plan` of the read, and hands the
    result to `finish`.

    Attributes:
        bank: The object's memory.
        cond: The host's prompted frames of it.
        moment: The frame.
        geometry: How far the model reads.
        began: `time.perf_counter()` when tracking began; NaN where no time is taken.
        reading: What was read.
        encoded: The frame's output as the model returned it, on its device.
        candidates: (1, K, H/4, W/4) the decoder's candidate masks and (1, K) predicted IoUs.
        ranking: (1, K) of which the host takes the highest.
        tokens: (1, K, C) the decoder's tokens of the candidates, or (1, 1, C) of all of them.
        measured: Scores that are known before the frame is measured.
        as_prompted: The frame's memory features encoded as a prompted frame's are, where the method asks for that.
    """

    bank: MemoryBank
    cond: Mapping[int, Entry]
    moment: Moment
    geometry: Geometry
    began: float
    reading: Reading | None = None
    encoded: Mapping[str, object] | None = None
    candidates: tuple[Tensor, Tensor] | None = None
    ranking: Tensor | None = None
    tokens: Tensor | None = None
    measured: dict[str, Tensor] = field(default_factory=dict)
    as_prompted: Tensor | None = None

    @classmethod
    def begin(
        cls,
        bank: MemoryBank,
        cond: Mapping[int, Entry],
        moment: Moment,
        geometry: Geometry,
        began: float | None = None,
    ) -> Tracking:
        """Take up tracking of a frame; `began` is now, unless it is given."""
        began = time.perf_counter() if began is None else began
        bank.begin(moment)
        return cls(bank, cond, moment, geometry, began)

    @property
    def found(self) -> tuple[Tensor, Tensor]:
        """The candidates.

        Raises:
            RuntimeError: The decoder did not run.
        """
        if self.candidates is None:
            raise RuntimeError("the decoder did not run; this is a fault of sam2_keyframe, please report it")
        return self.candidates

    def plan(self, grid: tuple[int, int], device: torch.device, image_embed: Tensor | None = None) -> Reading:
        """Return what is to be read; see `MemoryBank.plan`."""
        self.reading = self.bank.plan(self.cond, self.moment, self.geometry, grid, device, image_embed)
        return self.reading

    def choose(self, masks: Tensor, ious: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """Take note of the decoder's candidates; return what the host goes by instead of the decoder's numbers.

        That is the ranking, (1, K), of which the host takes the highest, another than the estimates where the method
        chooses masks by motion; and the object score, (1, 1), lower where a return is to be confirmed.

        Args:
            masks: (1, K, H/4, W/4) candidates.
            ious: (1, K) estimates.
            score: (1, 1) object score.
        """
        self.candidates = masks, ious
        self.ranking = ranking = self._rank(masks, ious, score)
        if self.bank.returns is not None:
            best = ranking[0].argmax()[None]
            score = self.bank.returns.judge(score, *(x[0].index_select(0, best)[0] for x in (ious, masks)))
        return ranking, score

    def _rank(self, masks: Tensor, ious: Tensor, score: Tensor) -> Tensor:
        track = self.bank.track
        if track is None:
            return ious
        if ious.shape[1] == 1:
            self.measured["kalman_overlap"] = ious.new_full((), float("nan"))
            return ious
        # At the resolution at which SAM 2 hands masks to its memory encoder, as SAMURAI measures boxes.
        full = F.interpolate(masks.float(), scale_factor=4, mode="bilinear")
        visible = torch.where(score[..., None, None] > 0, full, -1.0)
        ranking, self.measured["kalman_overlap"] = track.choose(visible, ious)
        self.measured["predicted_iou"] = ious[0].gather(0, ranking[0].argmax()[None])[0]
        return ranking  # in float32, where no two are rounded to one

    def finish(self, entry: Entry, frame: TrackedFrame | None) -> None:
        """Take in the tracked frame, let go what the next one does not need, and add its row.

        Args:
            entry: What the host stores of it.
            frame: What scorers look at; None where nobody asks for it.
        """
        bank, moment, reading = self.bank, self.moment, self.reading
        if frame is not None:
            frame.measured.update(self.measured)
        bank.observe(entry, frame if bank.method.observes else None, moment, self.cond)
        for listener in bank.listeners:
            listener.tracked(bank, moment, frame)
        if self.as_prompted is not None:
            bank.as_prompted = self.as_prompted.to(entry["maskmem_features"])
        bank.trim(moment.then())
        if reading is not None and reading.prompts is self.cond:
            alone = reading.read
        else:
            alone = closest(moment.frame_idx, self.cond, self.geometry.prompts)
        bank.account(self.cond, alone, moment, reading, self.began, self.geometry)


class Banks:
    """The memory banks of one wrapping: one an object, each kept where the host keeps that object's state.

    Args:
        method: The method.
    """

    def __init__(self, method: KeyframeMemory) -> None:
        self.method = method
        self._all: weakref.WeakSet[MemoryBank] = weakref.WeakSet()
        self._owner = Owner()

    @property
    def listeners(self) -> list[Listener]:
        """Who is told of the frames that the banks take in."""
        return self._owner.listeners

    @property
    def observe(self) -> bool:
        """Whether somebody looks at frames: the method, or who listens."""
        return self.method.observes or bool(self.listeners)

    def __iter__(self) -> Iterator[MemoryBank]:
        return iter(self._all)

    def get(
        self,
        place: MutableMapping[str, Any],
        non_cond: MutableMapping[int, Entry],
        adopt: Callable[[MemoryBank], None] = lambda bank: None,
    ) -> MemoryBank:
        """Return an object's bank, made at its first use.

        Args:
            place: Where it lies, under `KEY`.
            non_cond: The host's dict of tracked frames.
            adopt: Called with a new bank, to take in frames that were prompted before.
        """
        bank = place.get(KEY)
        if isinstance(bank, MemoryBank) and bank.non_cond is non_cond:
            if bank.owner is self._owner:
                return bank
            if bank.owner is None and bank.method == self.method and bank.tells_of(non_cond):
                bank.owner = self._owner  # of a state that was copied or saved in the middle of a video
                self._all.add(bank)
                return bank
        bank = place[KEY] = MemoryBank(self.method, self._owner, non_cond)
        self._all.add(bank)
        adopt(bank)
        return bank

    def owns(self, bank: MemoryBank) -> bool:
        """Return whether a bank is of this wrapping, or was copied with its state and would be taken over."""
        return bank.owner is self._owner or (bank.owner is None and bank.method == self.method)

    def take_in(self, place: MutableMapping[str, Any], bank: MemoryBank) -> None:
        """Put a bank that was made elsewhere beside its object's frames."""
        place[KEY] = bank
        bank.owner = self._owner
        self._all.add(bank)

    def release(self, device: torch.device) -> None:
        """Hand SAM 2 back what it can read by itself; no other wrapping goes on with these banks."""
        for bank in self._all:
            bank.paths = []
            bank.store.release(device)
            bank.owner = RELEASED
