"""One-off measurements, each a script beside its committed results."""
