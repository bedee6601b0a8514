"""The layers that explain a network: how they are put into it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from lapbench.benchmark.fields import NONE, Area, without
from lapbench.toml import Table


class Concept(Table):
    """One concept head of every LAP: when its concept is present, how much of the map it may cover.

    classes: the classes in which the concept is present; none makes it a common head, which has no label.
    The area ratios are fractions of the map's pixels (MinAR, MaxAR, IAR of Eq. 5); false (or None) drops a
    term.
    """

    name: str
    classes: tuple[str, ...] = ()
    min_area: Area = 0.1
    max_area: Area = 0.5
    inactive_area: Area = 0.1


class EachClass(Table):
    """A concept head for every class of the data, all with the area ratios of `Concept`."""

    min_area: Area = 0.1
    max_area: Area = 0.5
    inactive_area: Area = 0.1


class Plug(Table):
    """How LAP, or a relative, is put into a network, and what its scoring module is made of.

    layer: ``lap``; ``lip``, which has its hidden, score_activation and score_init in common; or ``average``,
    ``max`` and ``strided``, which have no weights. Concepts are LAP's alone. channels: of LIP; ``each`` is as
    published, ``shared`` a variant with one map of weights, as LAP has.
    """

    layer: Literal["lap", "lip", "average", "max", "strided"] = "lap"
    concepts: tuple[Concept, ...] = ()
    each_class: EachClass | None = None  # in the place of concepts
    channels: Literal["shared", "each"] = "shared"
    sites: tuple[str, ...] | Literal["paper", "all"] = "paper"
    branch_mode: Literal["shared", "separate", "post_add"] = "shared"  # open
    branch_scores: Literal["conv", "concat"] = "conv"  # open: what a shared LAP scores
    lap_position: Literal["pre_norm", "post_act"] = "pre_norm"  # open
    mixed_mode: Literal["concat", "per_branch"] = "concat"  # open: Inception's reduction blocks
    hidden: Annotated[PositiveInt | None, NONE] = (
        8  # channels of the scoring module's hidden layer; none: a single layer
    )
    score_activation: Literal["relu", "leaky_relu"] = "relu"  # open
    score_init: Literal["zero", "default"] = "zero"  # open
    aggregation: Literal["identity", "max", "sum", "trainable"] = "identity"
    aggregate_positive: Literal["sigmoid", "softplus"] = "sigmoid"  # open: for the trainable aggregation
    alpha_init: float = 1.0  # open
    alpha_trainable: bool = True
    eps: PositiveFloat = 1e-6  # open

    def of(self, classes: Sequence[str]) -> "Plug":
        """Return the plug for data of these classes: each_class becomes concepts named like the classes."""
        if self.each_class is None:
            return self
        areas = self.each_class.model_dump()
        concepts = tuple(Concept(name=name, classes=(name,), **areas) for name in classes)
        return self.model_copy(update={"concepts": concepts, "each_class": None})

    @model_serializer(mode="wrap")
    def _without_what_is_younger(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings that are younger than some weights where they are not used: names stay."""
        unused = {"each_class": None, "layer": "lap", "channels": "shared"}
        return {key: v for key, v in write(self).items() if key not in unused or v != unused[key]}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [concept.name for concept in self.concepts]
        faults = []
        if self.layer == "lap" and not names and self.each_class is None:
            faults.append("LAP needs at least one concept, or each_class")
        if names and self.each_class is not None:
            faults.append("give either concepts or each_class, not both")
        if idle := self._idle():
            other = "lip" if self.layer == "lap" else "lap"
            faults.append(f"layer {self.layer!r} has no {', '.join(idle)}: leave that out, or use {other!r}")
        if len(set(names)) < len(names):
            faults.append(f"concept names must differ (found {names})")
        if self.aggregation == "identity" and self.each_class is not None:
            faults.append(
                "aggregation 'identity' needs one concept, not each_class: use max, sum or trainable"
            )
        if self.aggregation == "identity" and len(names) > 1:
            faults.append(
                f"aggregation 'identity' needs one concept, found {len(names)}: use max, sum or trainable"
            )
        if self.channels == "each" and (self.branch_mode, self.branch_scores) == ("shared", "conv"):
            faults.append(
                "channels = 'each' needs the scores of all channels that are pooled: set "
                "branch_scores = 'concat', or branch_mode = 'separate'"
            )
        if self.alpha_init == 0 and self.alpha_trainable:
            faults.append("alpha_init = 0 is a stationary point: a trainable alpha would never move")
        return without(faults, self)

    def _idle(self) -> list[str]:
        """The settings that say something of parts that the layer has not."""
        of_logits = ("hidden", "score_activation", "score_init", "branch_scores")
        of_lap = (
            "concepts",
            "each_class",
            "aggregation",
            "aggregate_positive",
            "alpha_init",
            "alpha_trainable",
            "eps",
        )
        others = (*of_lap, *of_logits, "channels")
        absent = {"lap": ("channels",), "lip": of_lap}.get(self.layer, others)
        return [name for name in absent if getattr(self, name) != type(self).model_fields[name].default]


class AnteHoc(Table):
    """Ante-hoc interpretation maps (reconstruction) beside a network's global pooling.

    See `lapbench.models.weighting`: only the abstract of the paper was at hand, so that every field is open.
    """

    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    net: Literal["channels", "spatial"] = "channels"
    masked: NonNegativeFloat = 1.0  # λ1: of the task's loss where the head sees what the map keeps
    area: NonNegativeFloat = 0.01  # λ2: of the map's mean


BLA_PRESETS: dict[str, dict[str, Any]] = {
    "L2X": {"logits": "linear", "draws": 8, "temperature": 0.5, "temperature_mode": "divide"},
    "L2X-F": {"logits": "linear", "draws": 8},
    "BLA": {},
    "BLA-T": {"threshold": 0.98},
    "BLA-PH": {"threshold": 0.98},
}
"""What the names of the papers stand for, where it differs from the defaults of `Bla`."""


class Bla(Table):
    """Bounded logit attention in the place of a network's global pooling; see `lapbench.models.bla`.

    preset: a name of the paper, which gives every option that is not given itself. BLA-PH is BLA-T put behind
    a trained network whose head stays as it is: its recipe has a start, and only the attention learns. So it
    is with L2X, which explains that network: it learns to keep its answers (`Recipe.teacher`). L2X as
    published trains a second network that answers to the selected positions; here the head does.
    """

    preset: Literal["L2X", "L2X-F", "BLA", "BLA-T", "BLA-PH"] = "BLA"
    logits: Literal["bounded", "linear"] = "bounded"
    draws: NonNegativeInt = 0  # of Gumbel noise, and positions that are selected; 0: no noise, the maximum
    temperature: PositiveFloat = 0.1
    temperature_mode: Literal["multiply", "divide"] = "multiply"  # open: the official code, or a port of it
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0  # in units of the uniform weight
    renormalise: bool = False
    output: Literal["soft", "hard"] = "soft"  # at evaluation; training is soft
    evaluation_draws: Annotated[int, Field(ge=2)] = 16  # samples of the noise that evaluation averages over

    @model_serializer(mode="wrap")
    def _without_what_is_younger(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is younger than some weights where it is as it was not asked for: names stay."""
        unused = self.evaluation_draws == type(self).model_fields["evaluation_draws"].default
        return {key: v for key, v in write(self).items() if key != "evaluation_draws" or not unused}

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        name = given.get("preset", "BLA") if isinstance(given, dict) else None
        return {**BLA_PRESETS[name], **given} if isinstance(name, str) and name in BLA_PRESETS else given
