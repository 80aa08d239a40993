"""What is decided of a frame: keyframe filters, eviction, retrieval, likeness, motion, genetic choice."""
