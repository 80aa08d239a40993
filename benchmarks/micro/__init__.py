"""The embedded micro model: its training, its evaluation and the figures of its card."""
