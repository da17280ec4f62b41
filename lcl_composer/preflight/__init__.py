"""What is tried before the first step, on every node at once: `lcl check --preflight`."""
