"""Composer Algorithms: what changes training. One idea a file; docs/algorithms.md says when to use which."""
