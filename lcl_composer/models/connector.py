"""Patch tokens of any encoder as tokens of a language model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Connector(nn.Module):
    """Two layers with a GELU between (LLaVA-1.5, arXiv 2310.03744, section 3.2), each token by itself.

    The norm before them is InternVL's (arXiv 2404.16821): encoders give tokens of any scale.

    Args:
        width: Width W of the encoder's patch tokens.
        hidden_size: Width E of the language model.
    """

    def __init__(self, width: int, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of the language model: [I, K, W] -> [I, K, E]."""
        return self.fc2(F.gelu(self.fc1(self.norm(tokens))))

    def flops(self, tokens: int) -> int:
        """Operations of a forward of this many tokens."""
        return 2 * tokens * (self.fc1.weight.numel() + self.fc2.weight.numel())
