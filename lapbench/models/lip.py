"""Local importance-based pooling, which weighs pixels by exponentials of their logits.

"LIP: Local Importance-based Pooling" (Gao, Wang, Wu; ICCV 2019, arXiv 1908.04156).
"""

from typing import Any, cast

from torch import Tensor

from lapbench.models.lap import ConceptScoring, at_least_float32
from lapbench.models.pooling import Pooling, Window, under_windows, validity

BOUND = 12.0
"""The largest logit that the paper's gate lets through: the weights of pixels differ by e¹² at most."""


class ChannelScoring(ConceptScoring):
    """LIP's logits as published, G = 12 σ(z) (B, C, H, W): one of its own for each channel that is scored.

    options: those of `ConceptScoring` that say something of a single head.
    """

    def __init__(self, in_channels: int, **options: Any) -> None:
        super().__init__(in_channels, in_channels, aggregation="sum", **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → G (B, C, H, W), at least float32."""
        return self.bounded(super().forward(x))

    def bounded(self, z: Tensor) -> Tensor:
        """The gate G = 12 σ(z), element by element."""
        return cast(Tensor, BOUND * self.probability(at_least_float32(z)))


class LIP(Pooling):
    """LIP: the weight of a pixel is F = exp(G), its logit G from the features of that pixel.

    With a `ChannelScoring` each channel has a logit of its own, as published: it pools the channels that it
    scores. With a `ConceptScoring` of one head it is a variant: one map of weights serves all channels, as
    LAP's does, and no bound is needed, since the exponentials are taken of differences. So it and a LAP
    network differ in what is made of the logits alone. In both the logit module is LAP's, a stack of 1×1
    convolutions, where the paper has a 3×3 one with instance norm; like the paper's it starts at z = 0,
    average pooling.
    window: None for one as large as the map. Errors: ValueError for a module of several concept heads.
    """

    def __init__(self, scoring: ConceptScoring, window: Window | None) -> None:
        super().__init__(window)
        self.each = isinstance(scoring, ChannelScoring)
        if scoring.heads != 1 and not self.each:
            raise ValueError(f"LIP needs a logit module with one head, found {scoring.heads}")
        self.scoring = scoring

    def logits(self, scored: Tensor) -> Tensor:
        """The logits G (B, 1 or C', H, W) of features (B, C', H, W), at least float32."""
        found: Tensor = at_least_float32(self.scoring(scored))
        if found.shape[2] == 0 or found.shape[3] == 0:
            raise ValueError(
                f"LIP needs at least one pixel, found a map of {found.shape[2]}×{found.shape[3]}"
            )
        return found

    def under_windows(self, logits: Tensor, *, outside: float = -float("inf")) -> Tensor:
        """Logits G of the n pixels under each window, row by row, and `outside` beyond the border.

        (B, n, H', W') of one map, (B, n, C, H', W') where each channel has its own.
        """
        window = self.window(logits.shape[2], logits.shape[3])
        beyond = validity(logits, window) == 0
        under = under_windows(_as_samples(logits), window).masked_fill(beyond, outside)
        return under.view(*logits.shape[:2], *under.shape[1:]).transpose(1, 2) if self.each else under

    def window_weights(self, scored: Tensor) -> Tensor:
        """Weights exp G / Σ exp G of the n pixels under each window, in the shape of `under_windows`."""
        return self.under_windows(self.logits(scored)).softmax(1)

    def pool(self, x: Tensor, weights: Tensor) -> Tensor:
        """Pool x (B, C, H, W) by given window weights → (B, C, H', W'), in x's own dtype."""
        if not self.each:
            return super().pool(x, weights)
        pooled = super().pool(_as_samples(x), weights.transpose(1, 2).flatten(0, 1))
        return pooled.view(*x.shape[:2], *pooled.shape[2:])


def _as_samples(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B·C, 1, H, W)."""
    return x.flatten(0, 1).unsqueeze(1)
