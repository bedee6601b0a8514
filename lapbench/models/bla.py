"""Bounded logit attention: global pooling that selects a subset of positions, which is then the explanation.

"Bounded logit attention: Learning to explain image classifiers" (Baumhauer et al., arXiv 2105.14824). Logits
that cannot exceed 0 let many positions reach the same maximum, so that the selected subset finds its own
size. L2X, which BLA is compared with, samples k positions ("Learning to Explain: An Information-Theoretic
Perspective on Model Interpretation", Chen et al., ICML 2018); on a frozen trunk it is called L2X-F. As an
explainer of a trained classifier, L2X learns what that answers to all positions, rather than labels.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lapbench.models.lap import at_least_float32, per_pixel
from lapbench.models.pooling import Pooling

Output = Literal["soft", "hard", "all"]

_NOISE_SEED = 0
"""Of the draws that every evaluation shares."""
EVALUATION_VERSION = 2
"""Raised when a change may change what networks with draws answer."""


class SubsetAttention(nn.Module):
    """Differentiable subset selection: logits z (B, …) → weights (B, …) of all but the first axis.

    The value of a position is p = −ReLU(z) ≤ 0 where `logits` are bounded, −z where they are linear. The soft
    weights are g = softmax(τ p), or softmax(p / τ) where `temperature_mode` is ``divide``. With `draws` = k,
    Gumbel noise is added to p k times, and g is the largest of the k (L2X's relaxed sample of k positions).
    `threshold` lets only what exceeds this fraction of the uniform weight through, ReLU(g − t / n);
    `renormalise` makes the weights add up to 1 again.

    The hard weights are those of the selected positions: all whose p is the maximum, the same for each; with
    draws the k largest, 1/k each, which positions of the same value share. They pass no gradient, and there
    is no noise in them: they are the k likeliest.
    Training uses the soft weights, and so does evaluation, unless `output` is ``hard``; or ``all``, which
    leaves nothing out: the same weight for each position, 1/n, as in a network before it selects. L2X draws
    in evaluation, too; so that the network answers the same when it is asked again, and shows what it weighs
    rather than the noise of one sample, the weights are there the mean over `evaluation_draws` fixed samples,
    the same for all that is asked. What is pooled is linear in the weights: it is the mean of what the
    samples pool, and behind a linear head the logits are the mean of their logits. Soft decision and map are
    of these same weights. Every position meets the same noise, in another order, so that equal positions have
    equal weights, but for what the noise of the others makes of them.
    """

    def __init__(
        self,
        *,
        logits: Literal["bounded", "linear"] = "bounded",
        draws: int = 0,
        temperature: float = 0.1,
        temperature_mode: Literal["multiply", "divide"] = "multiply",
        threshold: float = 0.0,
        renormalise: bool = False,
        output: Output = "soft",
        evaluation_draws: int = 16,
    ) -> None:
        super().__init__()
        self.logits, self.draws, self.threshold, self.renormalise = logits, draws, threshold, renormalise
        self.temperature, self.temperature_mode, self.output = temperature, temperature_mode, output
        self.evaluation_draws = evaluation_draws
        # Modules rather than functions: attribution methods that hook non-linearities must see them.
        self.bound = nn.ReLU()
        self.excess = nn.ReLU()

    def forward(self, logits: Tensor) -> Tensor:
        """Logits z (B, …) → weights (B, …), at least float32."""
        if self.training or self.output == "soft":
            return self.soft(logits)
        if self.output == "hard":
            return self.hard(logits)
        return torch.full_like(at_least_float32(logits), 1 / logits[0].numel())

    def values(self, logits: Tensor) -> Tensor:
        """Return p (B, …), the higher the more important; 0 is the bound."""
        z = at_least_float32(logits)
        return -self.bound(z) if self.logits == "bounded" else -z

    def soft(self, logits: Tensor) -> Tensor:
        """Return the weights that training learns by; at evaluation the mean of such."""
        g = self.scaled(self.noisy(self.values(logits).flatten(1))).softmax(-1).amax(2)
        if self.threshold:
            g = self.excess(g - self.threshold / g.shape[2])
        if self.renormalise:
            g = g / g.sum(2, keepdim=True)
        return g.mean(1).view(logits.shape)

    @torch.no_grad()
    def hard(self, logits: Tensor) -> Tensor:
        """Return the weights of the selected positions, 0 elsewhere; they add up to 1.

        Where a logit is NaN nothing can be selected, and all are NaN.
        """
        p = self.values(logits).flatten(1)
        wanted = min(self.draws, p.shape[1]) if self.draws else 1
        last = p.topk(wanted, dim=1).values[:, -1:]  # the least value that is selected
        above, equal = (p > last).to(p), (p == last).to(p)
        left = wanted - above.sum(1, keepdim=True)
        weights = (above + equal * left / equal.sum(1, keepdim=True)) / wanted
        return weights.masked_fill(p.isnan().any(1, keepdim=True), math.nan).view(logits.shape)

    def noisy(self, p: Tensor) -> Tensor:
        """Values p (B, n) → (B, R, k, n), R samples of k draws each; without draws (B, 1, 1, n), p itself.

        In training R = 1, and all noise is its own.
        """
        if not self.draws:
            return p[:, None, None]
        if self.training:
            shape = (len(p), 1, self.draws, p.shape[1])
            draws = torch.empty(shape, dtype=p.dtype, device=p.device).exponential_()
        else:
            generator, samples = torch.Generator().manual_seed(_NOISE_SEED), self.evaluation_draws
            pool = torch.empty(samples, self.draws).exponential_(generator=generator)
            order = torch.rand(samples, p.shape[1], generator=generator).argsort(0)
            draws = pool[order].transpose(1, 2).to(p)
        return p[:, None, None] - draws.log()  # −log of an exponential variable has Gumbel's distribution

    def scaled(self, p: Tensor) -> Tensor:
        """Return what softmax is taken of."""
        return p * self.temperature if self.temperature_mode == "multiply" else p / self.temperature

    def extra_repr(self) -> str:
        """Every setting."""
        names = ["logits", "draws", "temperature", "temperature_mode", "threshold", "renormalise", "output"]
        names += ["evaluation_draws"] if self.draws else []
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class BLA(Pooling):
    """Bounded logit attention in the place of global pooling: its one window is the whole map.

    (B, C, H, W) → Σ w·x over the positions, (B, C, 1, 1). A 1×1 convolution gives every position its logit z,
    and the attention its weight w: see `SubsetAttention`.
    """

    def __init__(self, in_channels: int, attention: SubsetAttention) -> None:
        super().__init__(None)
        self.in_channels, self.attention = in_channels, attention
        self.score = nn.Conv2d(in_channels, 1, 1)
        nn.init.xavier_uniform_(self.score.weight)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def window_weights(self, scored: Tensor) -> Tensor:
        """Weights (B, n, 1, 1) of the n = H·W positions, row by row.

        They need not add up to 1: a threshold takes some of it away, draws add to it.
        """
        height, width = scored.shape[2:]
        if not height or not width:
            raise ValueError(f"BLA needs at least one position, found a map of {height}×{width}")
        logits = per_pixel(scored.flatten(2), self.score).view(len(scored), height, width)
        weights: Tensor = self.attention(logits)
        return weights.view(len(scored), -1, 1, 1)


def bla_layers(model: nn.Module) -> dict[str, BLA]:
    """The network's BLA modules by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BLA)}


@contextmanager
def deciding(model: nn.Module, output: Output) -> Iterator[None]:
    """Let every BLA of the network give this output at evaluation; afterwards each gives its own again."""
    own = {layer.attention: layer.attention.output for layer in bla_layers(model).values()}
    try:
        for attention in own:
            attention.output = output
        yield
    finally:
        for attention, before in own.items():
            attention.output = before


@dataclass(frozen=True, eq=False)
class BlaRecord:
    """What one BLA said of the positions in one forward pass, each (B, H, W).

    values: p. weights: g, the soft weights. selection: the hard weights, 0 for what is not selected. The soft
    ones keep their graph.
    """

    name: str
    values: Tensor
    weights: Tensor
    selection: Tensor

    @property
    def selected(self) -> Tensor:
        """The set D of selected positions, as bool."""
        return self.selection > 0


@contextmanager
def record_bla(model: nn.Module) -> Iterator[list[BlaRecord]]:
    """Record every BLA of the model while inside, in the order they run.

    The list is emptied at each forward pass of the model, so that it always holds the latest pass; the hooks
    are gone when the block is left, also by an exception.
    """
    records: list[BlaRecord] = []

    def recorder(name: str) -> Any:
        def record(attention: SubsetAttention, args: tuple[Tensor, ...], weights: Tensor) -> None:
            (z,) = args
            soft = weights if attention.training or attention.output == "soft" else attention.soft(z)
            records.append(BlaRecord(name, attention.values(z), soft, attention.hard(z)))

        return record

    handles = [model.register_forward_pre_hook(lambda _module, _args: records.clear())]
    try:
        for name, layer in bla_layers(model).items():
            handles.append(layer.attention.register_forward_hook(recorder(name)))
        yield records
    finally:
        for handle in handles:
            handle.remove()
