"""Local importance-based pooling, which weighs pixels by exponentials of their logits.

"LIP: Local Importance-based Pooling" (Gao, Wang, Wu; ICCV 2019, arXiv 1908.04156).
"""

from torch import Tensor

from lapbench.models.lap import ConceptScoring, at_least_float32
from lapbench.models.pooling import Pooling, Window, under_windows, validity


class LIP(Pooling):
    """LIP: the weight of a pixel is F = exp(G), its logit G from the features of that pixel.

    The logit module is LAP's: a stack of 1×1 convolutions with one head, which starts at G = 0, average
    pooling, as the paper's do. So a LIP and a LAP network differ in what is made of the logits alone. The
    paper's own modules give each channel its logit, and bound it by 12 σ(instance norm); here one map of
    weights serves all channels, and no bound is needed, since the exponentials are taken of differences.
    window: None for one as large as the map. Errors: ValueError for a module of several heads.
    """

    def __init__(self, scoring: ConceptScoring, window: Window | None) -> None:
        super().__init__(window)
        if scoring.heads != 1:
            raise ValueError(f"LIP needs a logit module with one head, found {scoring.heads}")
        self.scoring = scoring

    def logits(self, scored: Tensor) -> Tensor:
        """The logits G (B, 1, H, W) of features (B, C', H, W), at least float32."""
        found: Tensor = at_least_float32(self.scoring(scored))
        if found.shape[2] == 0 or found.shape[3] == 0:
            raise ValueError(
                f"LIP needs at least one pixel, found a map of {found.shape[2]}×{found.shape[3]}"
            )
        return found

    def window_weights(self, scored: Tensor) -> Tensor:
        """Weights (B, n, H', W') of the n pixels under each window, row by row: exp G / Σ exp G."""
        logits = self.logits(scored)
        window = self.window(logits.shape[2], logits.shape[3])
        outside = validity(logits, window) == 0
        return under_windows(logits, window).masked_fill(outside, -float("inf")).softmax(1)
