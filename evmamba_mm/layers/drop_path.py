"""Stochastic depth (arXiv:1603.09382).

Shape letters: B batch.
"""

from torch import Tensor, nn

from ..arguments import checked


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training.

    Kept samples are scaled so that the expectation stays the same.

    Args:
        drop_prob: Share of samples that lose the branch, in [0, 1).

    Raises:
        ValueError: If the share lies outside.
    """

    @checked
    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def sample_scale(self, x: Tensor) -> Tensor | None:
        """Factor of each sample of a branch (B, ...): (B,), or None for 1."""
        if self.drop_prob == 0.0 or not self.training:
            return None
        keep_prob = 1.0 - self.drop_prob
        mask = x.new_empty(x.shape[0])
        return mask.bernoulli_(keep_prob).div_(keep_prob)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a branch of shape (B, ...)."""
        scale = self.sample_scale(x)
        if scale is None:
            return x
        return x * scale.view(-1, *[1] * (x.dim() - 1))

    def extra_repr(self) -> str:
        """Show the rate in the module's repr."""
        return f'drop_prob={self.drop_prob:.3f}'
