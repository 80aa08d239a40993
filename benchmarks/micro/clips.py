"""The micro model's evaluation clips: fixed before its training began, never trained on, never changed afterwards.

Training seeds start at 1,000,000,000 (``train.TRAIN_SEED``); everything here lies far below.
"""

from __future__ import annotations

from sam2_keyframe.synthetic import CHALLENGES

FRAMES = 24
SIZE = 256
OBJECTS = 1
SEEDS = tuple(range(100, 106))
CLIPS: tuple[tuple[str, int], ...] = tuple((challenge, seed) for challenge in CHALLENGES for seed in SEEDS)
"""(challenge, seed) of each of the 66 clips."""

LONG_CHALLENGE = "occlusion"
LONG_FRAMES = 72
LONG_SEEDS = tuple(range(200, 230))
"""Seeds of the 30 long occlusion clips on which memory methods are compared."""

AWAY_FRAMES = 150
AWAY_CLIPS = 4
AWAY_SEED = 300
"""Of each way to be away so many clips from this seed on show whether the model knows when an object is gone."""
