"""A benchmark as a whole: its data, models, explainers, protocol and claims."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from lapbench.benchmark.claims import Claim
from lapbench.benchmark.fields import Fraction, known_name, without
from lapbench.benchmark.model import Model
from lapbench.errors import suggest
from lapbench.registry import check_parameters, explainers
from lapbench.toml import Table

NO_NETWORK = "no network"
"""What stands in the place of the model where a row is a control that knows none."""


class Data(Table):
    """What the network sees: a manifest's images at one size, and which split serves which end."""

    manifest: str
    image_size: tuple[PositiveInt, PositiveInt]  # height, width
    channels: Literal[1, 3] = 3  # grey images are repeated when 3 are asked for
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of the network's input, one per channel
    std: tuple[PositiveFloat, ...] = (0.229, 0.224, 0.225)
    train: str = "train"
    select: str = "val"  # chooses the best epoch
    fit: str = "val"  # fits the global thresholds
    score: str = "test"
    fit_limit: PositiveInt | None = None  # only the first samples of that split
    score_limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _splits_are_apart(self) -> Self:
        faults = []
        if self.score == self.fit:
            faults.append(
                f"the threshold may not be fitted on the split it is scored on: both are {self.fit!r}"
            )
        if self.score in (self.train, self.select):
            faults.append(f"the scored split {self.score!r} may not train the network or choose its epoch")
        if not len(self.mean) == len(self.std) == self.channels:
            faults.append(
                f"mean and std need one value per channel, {self.channels} each "
                f"(found {len(self.mean)} and {len(self.std)})"
            )
        return without(faults, self)


class Explainer(Table):
    """An explainer with its parameters; label names the row when one explainer is used twice."""

    name: str
    label: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(lambda: explainers.get(name).name)

    @model_validator(mode="after")
    def _parameters_fit(self) -> Self:
        check_parameters("explainer", self.name, explainers.get(self.name).parameters, self.parameters)
        return self

    @property
    def row(self) -> str:
        """The name of its row in the table."""
        return self.label or explainers.get(self.name).title


class Protocol(Table):
    """How maps become scores: the LAP paper's evaluation with its Appendix B; open points are switches.

    The default of a switch that is added later is what was done before: baselines that do not know it stay
    comparable.
    """

    target: str = "label"  # the class explained: "label", "predicted", or the name of one class for all
    selections: tuple[Literal["threshold", "top-k", "native"], ...] = ("threshold", "top-k", "native")
    sign: Literal["keep", "relu", "abs"] = "keep"  # open: what is done to signed maps before scaling
    order: Literal["upsample-scale", "scale-upsample"] = "upsample-scale"  # open
    fit_images: Literal["all", "positives"] = "all"  # open: do images without truth enter the fit
    orientation: Literal["literal", "always-above"] = "literal"  # open: an inverted fit selects below
    threshold_fit: Literal["auto", "ridge", "streaming"] = "auto"
    score_images: Literal["positives", "correct-positives"] = "positives"  # open
    averaging: Literal["per-image", "pooled"] = "per-image"  # open
    pointing_tolerance: NonNegativeFloat = 0.03  # of the longer side: 15 pixels of 500 (Zhang et al., 2018)
    box_accuracy: bool = False  # MaxBoxAcc and MaxBoxAccV2: 5 to 40 ms a map, where all else takes 1
    deletion_steps: PositiveInt | None = None  # of insertion and deletion, each two passes for every map
    removal_grid: Annotated[int, Field(ge=2)] | None = None  # regions a side, each a pass for every map
    stability_samples: PositiveInt | None = None  # changed images, each explained anew
    stability_radius: PositiveFloat = 0.1  # of the uniform noise, in units of the network's input
    randomised_weights: bool = True  # show every explainer on a network with random weights, too
    completeness_bound: PositiveFloat = 0.01  # of |f(x) − f(baseline)|; a row above it says so
    confidence: Fraction = 0.95
    resamples: PositiveInt = 9999


class Benchmark(Table):
    """One benchmark: data, models, explainers and the protocol that turns maps into a ranking."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    version: PositiveInt
    title: str
    about: str = ""
    data: Data
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    explainers: Annotated[tuple[Explainer, ...], Field(min_length=1)]
    protocol: Protocol = Protocol()
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _models_start_from_earlier_ones(self) -> Self:
        faults = []
        for number, model in enumerate(self.models):
            start = model.recipe.start if model.recipe else None
            earlier = {m.name: m for m in self.models[:number]}
            if start is not None and start not in earlier:
                hint = suggest(start, earlier) if earlier else ""
                faults.append(f"{model.name} starts from {start!r}, which is no model further up{hint}")
            elif (
                start is not None
                and len(earlier[start].seeds) > 1
                and set(model.seeds) - set(earlier[start].seeds)
            ):
                faults.append(f"{model.name} has seeds that {start}, which it starts from, has not")
        return without(faults, self)

    @model_validator(mode="after")
    def _claims_speak_of_what_is_there(self) -> Self:
        models = {NO_NETWORK, *(m.name for m in self.models)}
        rows = {e.row for e in self.explainers}
        faults = []
        for claim in self.claims:
            for term in sorted({term for pair in claim.pairs for term in pair}, key=lambda term: term.text):
                if term.model not in models or (term.model == NO_NETWORK and term.explainer is None):
                    faults.append(f"claim {claim.id}: no model {term.model!r}{suggest(term.model, models)}")
                if term.explainer is not None and term.explainer not in rows:
                    hint = suggest(term.explainer, rows)
                    faults.append(f"claim {claim.id}: no explainer row {term.explainer!r}{hint}")
        return without(faults, self)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for kind, names in (
            ("model", [m.name for m in self.models]),
            ("explainer row", [e.row for e in self.explainers]),
            ("claim", [c.id for c in self.claims]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind} names must differ (twice: {', '.join(twice)})")
        return self
