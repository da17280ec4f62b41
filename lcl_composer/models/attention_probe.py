"""Attention probes: a query's attention over an encoder's patch tokens, and a linear head; many at once."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcl_composer.models.batch_norm import GlobalBatchNorm

#: What attends: one learned vector, or the mean of the image's tokens.
Query = Literal["learned", "mean"]
#: How tokens are normalised: over the batch without weights, or each by itself with them.
TokenNorm = Literal["batch", "layer"]

#: As in InternVL's; that of the batch norms, 1e-6, is also AIM's.
_LAYER_NORM_EPS = 1e-5


class AttentionProbes(nn.Module):
    """G probes of one form, each with weights of its own, on the same tokens.

    ``query: learned``, ``token_norm: batch`` is AIM's probe (arXiv 2401.08541, section 4;
    ``AttentionPoolingClassifier`` of apple/ml-aim), ``mean`` and ``layer`` with the rest InternVL's
    (``AttentionPoolingBlock`` and the head of ``classification/models/intern_vit_6b.py``).

    Keys and values are never formed. A probe has one query for each of its H attention heads, so
    q (W_k x) = (W_k^T q) x, and since weights add up to 1, sum_k a_k (W_v x_k) = W_v (sum_k a_k x_k): what is
    left for a token is a product with H vectors, not two with W x W matrices, and those of all probes are one
    matrix. Weights of LayerNorms are folded in likewise. A bias of the keys, and that of their norm, adds the
    same to all scores and cancels in the softmax: there is none.

    Weights are lists of G tensors, so that an optimizer can give each probe a learning rate; all probes
    start from the same numbers.

    Args:
        width: Width W of the tokens.
        classes: Classes C.
        count: Probes G.
        num_heads: Attention heads H of a probe; divides ``width``.
        query: What attends.
        token_norm: Norm of the tokens.
        qkv_bias: Biases of query (where it is projected) and values.
        proj_dim: Width E of the projection behind the attention; None: none, and E is W.
        head_norm: Normalise what the head reads over the batch, with weights.
        head_bias: The head has a bias.

    Raises:
        ValueError: If ``width`` is not a multiple of ``num_heads``, or ``proj_dim`` is below 1.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        count: int = 1,
        num_heads: int = 12,
        query: Query = "learned",
        token_norm: TokenNorm = "batch",
        qkv_bias: bool = False,
        proj_dim: int | None = None,
        head_norm: bool = False,
        head_bias: bool = True,
    ) -> None:
        super().__init__()
        if proj_dim is not None and proj_dim < 1:
            raise ValueError(f"proj_dim {proj_dim} must be at least 1, or null")
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the encoder's width {width}")
        self.count, self.num_heads, self.classes = count, num_heads, classes
        self.read_dim = width if proj_dim is None else proj_dim
        self.token_norm = GlobalBatchNorm(width) if token_norm == "batch" else None
        self.head_norm = GlobalBatchNorm(count, self.read_dim) if head_norm else None
        self.weights = nn.ModuleDict()
        if query == "learned":
            self._add("query", torch.randn(width) * 0.02)
        else:
            self._add_linear("query", width, width, qkv_bias)
        self._add_linear("key", width, width, bias=False)
        self._add_linear("value", width, width, qkv_bias)
        if token_norm == "layer":
            self._add("key_norm", torch.ones(width))
            for name in ("value", *(["query"] if query == "mean" else [])):
                self._add(f"{name}_norm", torch.ones(width), torch.zeros(width))
        if proj_dim is not None:
            self._add_linear("proj", width, proj_dim, True)
        if head_norm:
            self._add("head_norm", torch.ones(self.read_dim), torch.zeros(self.read_dim))
        head = torch.randn(classes, self.read_dim) * 0.01
        self._add("head", head, torch.zeros(classes) if head_bias else None)
        self.learned = query == "learned"

    def _add(self, name: str, weight: Tensor, bias: Tensor | None = None) -> None:
        both = nn.ModuleDict()
        for kind, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                both[kind] = nn.ParameterList([nn.Parameter(tensor.clone()) for _ in range(self.count)])
        self.weights[name] = both

    def _add_linear(self, name: str, inputs: int, outputs: int, bias: bool) -> None:
        """As ``nn.Linear`` starts, the bias at 0."""
        weight = torch.empty(outputs, inputs).uniform_(-(inputs**-0.5), inputs**-0.5)
        self._add(name, weight, torch.zeros(outputs) if bias else None)

    def probe_of(self, parameter_name: str) -> int:
        """Which probe a parameter of this name belongs to."""
        return int(parameter_name.rpartition(".")[2])

    def _stacked(self, name: str, kind: str) -> Tensor | None:
        """A weight of all probes, [G, ...], in float32 where FSDP gathers less; None where there is none."""
        both = self.weights[name] if name in self.weights else nn.ModuleDict()
        return torch.stack(list(both[kind])).float() if kind in both else None  # type: ignore[arg-type]

    def _weight(self, name: str) -> Tensor:
        stacked = self._stacked(name, "weight")
        assert stacked is not None, name
        return stacked

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [G, I, C] of patch tokens [I, K, W]; computed in float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens_IKW = tokens.float()
            if self.token_norm is None:
                normed_IKW = F.layer_norm(tokens_IKW, tokens_IKW.shape[-1:], eps=_LAYER_NORM_EPS)
            else:
                normed_IKW = self.token_norm(tokens_IKW.flatten(0, 1)).view_as(tokens_IKW)
            pooled_IPW = self._attention(tokens_IKW, normed_IKW) @ normed_IKW
            return self._head(self._values(pooled_IPW.unflatten(1, (self.count, self.num_heads))))

    def _attention(self, tokens_IKW: Tensor, normed_IKW: Tensor) -> Tensor:
        """Weights [I, P, K] of the tokens, a row for each of the P = G * H queries; each row adds up to 1."""
        key_GHDW = self._weight("key").unflatten(1, (self.num_heads, -1))
        if "key_norm" in self.weights:
            key_GHDW = key_GHDW * self._weight("key_norm")[:, None, None]
        if self.learned:
            query_GHD = self._weight("query").unflatten(1, (self.num_heads, -1)) * self._scale
            folded_PW = torch.einsum("ghd,ghdw->ghw", query_GHD, key_GHDW).flatten(0, 1)
            return (normed_IKW @ folded_PW.T).softmax(1).transpose(1, 2)
        query_GIHD = self._mean_query(tokens_IKW, normed_IKW).unflatten(2, (self.num_heads, -1)) * self._scale
        folded_IPW = torch.einsum("gihd,ghdw->ighw", query_GIHD, key_GHDW).flatten(1, 2)
        return (folded_IPW @ normed_IKW.transpose(1, 2)).softmax(-1)

    @property
    def _scale(self) -> float:
        return (self._weight("key").shape[1] // self.num_heads) ** -0.5

    def _mean_query(self, tokens_IKW: Tensor, normed_IKW: Tensor) -> Tensor:
        """The mean of an image's tokens, normalised and projected: [G, I, W]."""
        if self.token_norm is not None:
            query_GIW = normed_IKW.mean(1).expand(self.count, -1, -1)
        else:
            mean_IW = F.layer_norm(tokens_IKW.mean(1), tokens_IKW.shape[-1:], eps=_LAYER_NORM_EPS)
            query_GIW = self._affine("query_norm", mean_IW.expand(self.count, -1, -1))
        return self._linear("query", query_GIW)

    def _values(self, pooled_IGHW: Tensor) -> Tensor:
        """Values of the pooled tokens, heads side by side: [G, I, W]."""
        value_GHDW = self._weight("value").unflatten(1, (self.num_heads, -1))
        added_GW = self._stacked("value", "bias")
        shift_GW = self._stacked("value_norm", "bias")
        if shift_GW is not None:
            shifted_GW = torch.einsum("ghdw,gw->ghd", value_GHDW, shift_GW).flatten(1)
            added_GW = shifted_GW if added_GW is None else added_GW + shifted_GW
            value_GHDW = value_GHDW * self._weight("value_norm")[:, None, None]
        values_GHID = pooled_IGHW.permute(1, 2, 0, 3) @ value_GHDW.transpose(2, 3)
        values_GIW = values_GHID.transpose(1, 2).flatten(2)
        return values_GIW if added_GW is None else values_GIW + added_GW[:, None]

    def _head(self, values_GIW: Tensor) -> Tensor:
        """Logits [G, I, C] of what was pooled."""
        read_GIE = self._linear("proj", values_GIW) if "proj" in self.weights else values_GIW
        if self.head_norm is not None:
            normed_GIE = self.head_norm(read_GIE.transpose(0, 1)).transpose(0, 1)
            read_GIE = self._affine("head_norm", normed_GIE)
        return self._linear("head", read_GIE)

    def _linear(self, name: str, inputs: Tensor) -> Tensor:
        """[G, I, inputs] -> [G, I, outputs]."""
        outputs = inputs @ self._weight(name).transpose(1, 2)
        bias = self._stacked(name, "bias")
        return outputs if bias is None else outputs + bias[:, None]

    def _affine(self, name: str, inputs: Tensor) -> Tensor:
        bias = self._stacked(name, "bias")
        assert bias is not None, name
        return inputs * self._weight(name)[:, None] + bias[:, None]

    def flops(self, images: int, tokens: int) -> int:
        """Operations of a forward of images of so many tokens; what is done once a batch is left out."""
        width = self._weight("key").shape[2]
        attention = 4 * tokens * width * self.num_heads
        matrices = 2 * width * width * (1 if self.learned else 3)  # values; query and folded keys
        matrices += 2 * width * self.read_dim if "proj" in self.weights else 0
        return images * self.count * (attention + matrices + 2 * self.read_dim * self.classes)
