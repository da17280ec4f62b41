"""Random numbers of one sample: the same on every rank, in every worker, before and after a resume."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def sample_rng(seed: int, epoch: int, sample_id: str, purpose: str) -> np.random.Generator:
    """Return the generator of one sample in one epoch.

    The key is hashed with blake2b, not ``hash()``, which differs between Python processes. Two purposes
    of the same sample (say ``"layout"`` and ``"augment"``) get independent streams, so that a change in
    how many numbers one of them draws leaves the other as it was.

    Args:
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
        sample_id: Id of the document.
        purpose: What the numbers are for.

    Returns:
        A PCG64 generator.
    """
    key = "\0".join((str(int(seed)), str(int(epoch)), purpose, sample_id))
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def share_of(sample_id: str) -> float:
    """A number in [0, 1) that depends on the id alone: what is below a share is that share of the samples."""
    digest = blake2b(sample_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"share").digest()
    return int.from_bytes(digest, "little") / 2**64
