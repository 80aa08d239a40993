"""The algorithm: what one object's memory holds, what is read of it, what leaves, and what it takes."""
