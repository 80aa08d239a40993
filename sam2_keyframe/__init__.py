"""Training-free keyframe memory for SAM 2 video predictors."""
