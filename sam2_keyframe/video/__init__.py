"""Frames in: decoding, the window of frames held, inference states, live streams."""
