"""DistributedDataParallel that adds up gradients in one order, however often a run was launched."""

from __future__ import annotations

from typing import Any

from torch.nn.parallel import DistributedDataParallel


class SameBuckets(DistributedDataParallel):
    """DDP whose buckets are those of the first step in all steps.

    DDP lays its buckets out anew behind the first backward, in the order in which gradients came. A ring of
    three ranks or more adds up an element in an order that follows from its place in a bucket, so the first
    step after a resume would round otherwise than that of a run that was never cut off. Here they are laid
    out at once, for gradients that come from the last parameter to the first.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reducer._push_all_rebuilt_params()
        self.reducer._rebuild_buckets()

    def _build_params_for_reducer(self) -> tuple[list[Any], list[bool]]:
        parameters, sparse = super()._build_params_for_reducer()
        return parameters[::-1], sparse[::-1]
