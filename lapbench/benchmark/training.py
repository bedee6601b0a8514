"""How a network is trained."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from lapbench.benchmark.fields import Fraction
from lapbench.toml import Table


class Losses(Table):
    """Weights and switches of the loss terms (Eq. 5 and 6, Appendix A)."""

    cross_entropy: NonNegativeFloat = 1.0
    concept_discrimination: NonNegativeFloat = 0.25
    concordance: NonNegativeFloat = 0.25
    boxes: NonNegativeFloat = 0.25
    cd_mean_over_pixels: bool = True  # open
    cd_over_concepts: Literal["sum", "mean"] = "sum"  # open
    k_rounding: Literal["round", "floor", "ceil"] = "round"  # open
    rank_source: Literal["dsm", "self"] = "dsm"  # open
    rank_source_iar: Literal["dsm", "self"] = "dsm"  # open
    dsm_weight: NonNegativeFloat | None = None  # open; none: that of concept_discrimination
    js_threshold: Fraction = 0.1  # open
    js_resize: Literal["nearest", "max", "average"] = "nearest"  # open
    js_form: Literal["bernoulli", "half"] = "bernoulli"  # open
    js_stop_gradient: Literal["none", "shallow", "deep"] = "none"  # open
    js_pixels: Literal["both-high", "high-low"] = "both-high"  # open
    box_resize: Literal["area", "nearest"] = "area"  # open
    bb_positive_weight: PositiveFloat = 2.0  # open


class Augment(Table):
    """Random changes of training images; boxes and masks move along."""

    horizontal_flip: bool = False
    vertical_flip: bool = False
    shift: NonNegativeFloat = 0.0  # at most this fraction of a side, both ways
    brightness: NonNegativeFloat = 0.0  # factor drawn from [1 − b, 1 + b]


class Recipe(Table):
    """How a network is trained."""

    supervision: Literal["none", "weak", "boxes"] = "none"  # none: cross-entropy alone
    teacher: Literal["labels", "network"] = "labels"  # network: its own answers, before BLA left anything out
    epochs: NonNegativeInt  # 0: the weights it starts from, as they are
    batch_size: PositiveInt = 64
    balanced: bool = True  # equal numbers of every class in a batch, drawn with replacement
    iterations: PositiveInt | None = None  # per epoch; none: ceil(classes · largest class / batch)
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 1e-6
    momentum: NonNegativeFloat = 0.9  # of sgd
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    select_epoch: Literal["val_loss", "balanced_accuracy"] = "val_loss"  # open
    pretrained: Path | None = None  # weights to start from: a file, or torchvision's by name (IMAGENET1K_V1)
    start: str | None = None  # or a model further up in the definition, with the same seed or its only one
    learning: tuple[str, ...] = ()  # modules; "lap", "lip", "bla", "antehoc": all such; none: everything
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "32-true"
    losses: Losses = Losses()
    augment: Augment = Augment()

    @model_serializer(mode="wrap")
    def _without_what_is_younger(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is younger than some weights where it is not used: names stay."""
        return {key: v for key, v in write(self).items() if key != "teacher" or v != "labels"}

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.start is not None and self.pretrained is not None:
            raise ValueError("give either start or pretrained, not both")
        if not self.epochs and self.start is None and self.pretrained is None:
            raise ValueError("epochs = 0 trains nothing: it needs start or pretrained")
        return self

    @property
    def published(self) -> str | None:
        """The name of the published weights that training starts from: what is no file has no suffix."""
        named = self.pretrained is not None and not self.pretrained.suffix
        return str(self.pretrained) if named else None

    def adds_only(self, name: str) -> bool:
        """Whether nothing but these modules learns, in a network that is trained already."""
        return self.learning == (name,) and (self.start or self.pretrained) is not None

    def identity(self) -> dict[str, Any]:
        """What of a recipe decides weights; settings younger than some weights count where they are used."""
        named = self.model_dump(mode="json") | {"pretrained": None}
        return {k: v for k, v in named.items() if v or k not in ("start", "learning")}
