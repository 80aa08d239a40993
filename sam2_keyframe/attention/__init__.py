"""Fewer tokens in memory attention: which tokens are read, and the maths, without any host."""
