"""Stochastic depth (arXiv:1603.09382)."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training.

    Kept samples are scaled so that the expectation stays the same.

    Args:
        drop_prob: Share of samples that lose the branch, in [0, 1).

    Raises:
        ValueError: If the share lies outside.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise ValueError(
                f'drop_prob must lie in [0, 1), got {drop_prob!r}'
            )
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a branch of shape (B, ...)."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        mask = x.new_empty(x.shape[0], *[1] * (x.dim() - 1))
        return x * mask.bernoulli_(keep_prob).div_(keep_prob)

    def extra_repr(self) -> str:
        """Show the rate in the module's repr."""
        return f'drop_prob={self.drop_prob:.3f}'
