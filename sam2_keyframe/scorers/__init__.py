"""Significance scorers: tensor code on the predictor's device, one small frozen dataclass each."""
