"""The feed-forward half of a transformer's block."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class FeedForward(nn.Module):
    """Norm, a layer four times as wide, an activation, and back.

    Args:
        hidden_size: Width E.
        activation: Between the two matrices.
        bias: Whether the matrices have biases.
    """

    def __init__(self, hidden_size: int, activation: Callable[[Tensor], Tensor], bias: bool):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.fc1 = nn.Linear(hidden_size, 4 * hidden_size, bias=bias)
        self.fc2 = nn.Linear(4 * hidden_size, hidden_size, bias=bias)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, E] -> [T, E], to be added to its input."""
        return self.fc2(self.activation(self.fc1(self.norm(hidden))))

    def flops(self, tokens: int) -> int:
        """Operations of a forward of this many tokens."""
        return 2 * tokens * (self.fc1.weight.numel() + self.fc2.weight.numel())
