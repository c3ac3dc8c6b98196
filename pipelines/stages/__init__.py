"""The stages of a run, one file each: a cache key, a build, and what the next stage needs of it."""
