"""A benchmark definition: everything that decides a number, validated, and nothing else.

Each class is one table of the TOML file. Defaults are the protocol's own; a field whose comment says ``open``
is a point that the papers leave undetermined, so the choice is a switch and stands in every record.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from lapbench.errors import DefinitionError, UnknownNameError, suggest
from lapbench.inheritance import resolve
from lapbench.registry import architectures, check_parameters, explainers
from lapbench.toml import Source, Table, read_source, validate

T = TypeVar("T", bound=Table)
Fraction = Annotated[float, Field(gt=0, lt=1)]
NONE = BeforeValidator(lambda value: None if value is False else value)
"""TOML has no null, and says false for none."""
Area = Annotated[Fraction | None, NONE]
"""A share of a map's pixels."""
NO_NETWORK = "no network"
"""What stands in the place of the model where a row is a control that knows none."""
RowName = Annotated[
    str, Field(pattern=r"^[^,\r\n]+$", max_length=60)
]  # commas separate names on the command line


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
        return _without(faults, self)


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
    ``max`` and ``strided``, which have no weights. Concepts are LAP's alone.
    """

    layer: Literal["lap", "lip", "average", "max", "strided"] = "lap"
    concepts: tuple[Concept, ...] = ()
    each_class: EachClass | None = None  # in the place of concepts
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
        unused = {"each_class": None, "layer": "lap"}
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
            faults.append(f"layer {self.layer!r} has no {', '.join(idle)}: leave that out, or use 'lap'")
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
        if self.alpha_init == 0 and self.alpha_trainable:
            faults.append("alpha_init = 0 is a stationary point: a trainable alpha would never move")
        return _without(faults, self)

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
        absent = {"lap": (), "lip": of_lap}.get(self.layer, of_lap + of_logits)
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
    "L2X-F": {"logits": "linear", "draws": 8},
    "BLA": {},
    "BLA-T": {"threshold": 0.98},
    "BLA-PH": {"threshold": 0.98},
}
"""What the names of the paper stand for, where it differs from the defaults of `Bla`."""


class Bla(Table):
    """Bounded logit attention in the place of a network's global pooling; see `lapbench.models.bla`.

    preset: a name of the paper, which gives every option that is not given itself. BLA-PH is BLA-T put behind
    a trained network whose head stays as it is: its recipe has a start, and only the attention learns.
    """

    preset: Literal["L2X-F", "BLA", "BLA-T", "BLA-PH"] = "BLA"
    logits: Literal["bounded", "linear"] = "bounded"
    draws: NonNegativeInt = 0  # of Gumbel noise, and positions that are selected; 0: no noise, the maximum
    temperature: PositiveFloat = 0.1
    temperature_mode: Literal["multiply", "divide"] = "multiply"  # open: the official code, or a port of it
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0  # in units of the uniform weight
    renormalise: bool = False
    output: Literal["soft", "hard"] = "soft"  # at evaluation; training is soft

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        name = given.get("preset", "BLA") if isinstance(given, dict) else None
        return {**BLA_PRESETS[name], **given} if isinstance(name, str) and name in BLA_PRESETS else given


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


class ConceptMLP(Table):
    """A two-layer network that reads the classes in what the concept maps of a LAP add up to (F_C).

    It learns from the training split. target: what it learns, the truth, which then also stands against what
    the network says; each: one network for the truth and one for what the network says.
    """

    hidden: PositiveInt = 128  # open
    target: Literal["truth", "each"] = "truth"  # open


class Decoder(Table):
    """What writes captions: a recurrent network (GRU), to which the architecture gives features."""

    hidden: PositiveInt = 128  # features, and numbers in the state


class Model(Table):
    """A network to be explained: an architecture with either a recipe or given weights.

    decoder: of networks that write captions.
    """

    name: RowName
    architecture: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    plug: Plug | None = None
    bla: Bla | None = None
    antehoc: AnteHoc | None = None
    concept_mlp: ConceptMLP | None = None
    decoder: Decoder | None = None
    recipe: Recipe | None = None
    weights: Path | None = None
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)

    @property
    def carries(self) -> frozenset[str]:
        """The layers in the network that explain themselves, by what explainers call them in their needs."""
        layers = {self.plug.layer} & {"lap", "lip"} if self.plug else set()
        return frozenset(layers | {name for name in ("bla", "antehoc") if getattr(self, name)})

    @field_validator("architecture")
    @classmethod
    def _known(cls, name: str) -> str:
        return _or_value_error(lambda: architectures.get(name).name)

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> Self:
        faults = []
        if (self.recipe is None) == (self.weights is None):
            faults.append("give either a recipe or weights" + (", not both" if self.recipe else ""))
        if self.weights is not None and self.seeds != (0,):
            faults.append("given weights have no seeds")
        if self.concept_mlp and "lap" not in self.carries:
            faults.append("concept_mlp reads the concepts of LAPs: it needs [models.plug]")
        if len(set(self.seeds)) < len(self.seeds):
            faults.append(f"seeds must differ (found {list(self.seeds)})")
        if self.recipe and self.recipe.supervision != "none" and "lap" not in self.carries:
            lacks = f" with layer 'lap' (found {self.plug.layer!r})" if self.plug else ""
            faults.append(
                f"supervision {self.recipe.supervision!r} trains concept heads, "
                f"which need [models.plug]{lacks}"
            )
        tables = [f"[models.{name}]" for name in ("plug", "bla", "antehoc") if getattr(self, name)]
        if len(tables) > 1:
            faults.append(f"a network explains itself in one way: give at most one of {' and '.join(tables)}")
        if self.bla and self.bla.preset == "BLA-PH" and self.recipe and not self.recipe.adds_only("bla"):
            faults.append(
                "BLA-PH leaves a trained network as it is: its recipe needs start or pretrained, and "
                'learning = ["bla"] (BLA-T trains more)'
            )
        table = architectures.get(self.architecture).parameters
        try:
            check_parameters("architecture", self.architecture, table, self.parameters)
        except ValueError as error:
            faults.append(str(error))
        return _without(faults, self)

    @model_serializer(mode="wrap")
    def _without_what_is_younger(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is younger than some digests where it is absent."""
        younger = ("bla", "antehoc", "concept_mlp", "decoder")
        return {key: v for key, v in write(self).items() if key not in younger or v is not None}


class Explainer(Table):
    """An explainer with its parameters; label names the row when one explainer is used twice."""

    name: str
    label: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _or_value_error(lambda: explainers.get(name).name)

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
    box_accuracy: bool = False  # MaxBoxAcc and MaxBoxAccV2: 5 to 200 ms a map, where all else takes 1
    deletion_steps: PositiveInt | None = None  # of insertion and deletion, each two passes for every map
    removal_grid: Annotated[int, Field(ge=2)] | None = None  # regions a side, each a pass for every map
    stability_samples: PositiveInt | None = None  # changed images, each explained anew
    stability_radius: PositiveFloat = 0.1  # of the uniform noise, in units of the network's input
    randomised_weights: bool = True  # show every explainer on a network with random weights, too
    completeness_bound: PositiveFloat = 0.01  # of |f(x) − f(baseline)|; a row above it says so
    confidence: Fraction = 0.95
    resamples: PositiveInt = 9999


class Term(Table):
    """One score that a claim speaks of: of an explainer on a model or, without explainer, of the model.

    The model of a control is "no network".

    measure: iou, pointing_game, energy or any other score of a row; of a model accuracy, balanced_accuracy,
    sensitivity, specificity, top_5_accuracy, or of its LAP number l alone predictivity_l and faithfulness_l,
    as a concept_mlp reads it mlp_predictivity_l and mlp_faithfulness_l, or of BLA accuracy_soft,
    accuracy_hard, agreement_hard, selected and size_varies; of landmarks landmark_accuracy and
    normalised_error, of captions word_accuracy and caption_accuracy.
    """

    model: str
    explainer: str | None = None
    selection: Literal["threshold", "top-k", "native"] = "threshold"
    measure: str = ""  # none: iou of an explainer, accuracy of a model

    @property
    def score(self) -> str:
        """The measure, its default filled in."""
        return self.measure or ("iou" if self.explainer else "accuracy")

    @property
    def text(self) -> str:
        """How tables name it."""
        if self.explainer is None:
            return f"{self.score} of {self.model}"
        return f"{self.score} of {self.explainer} on {self.model}, {self.selection}"


class Claim(Table):
    """A statement that the results can contradict: a score is higher, or steadier, than others; scores rise.

    higher, than: the one is above every one of the others. steadier, than: it varies less between trainings.
    rising: each is above the one before. margin: with one, no more is claimed than that the score is not
    lower by this much (non-inferiority).
    """

    id: str
    says: str
    higher: Term | None = None
    steadier: Term | None = None
    than: tuple[Term, ...] = ()
    rising: tuple[Term, ...] = ()
    margin: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [self.higher is not None, self.steadier is not None, bool(self.rising)]
        whole = len(self.rising) > 1 if self.rising else bool(self.than)
        if sum(forms) != 1 or not whole or (self.rising and self.than):
            raise ValueError(
                "a claim has higher and than, or steadier and than, or rising with two scores or more"
            )
        if self.steadier is not None and self.margin is not None:
            raise ValueError("a margin is one of means: steadier has none")
        return self

    @property
    def pairs(self) -> tuple[tuple[Term, Term], ...]:
        """What must be higher, or steadier, and than what."""
        ours = self.higher or self.steadier
        if ours is not None:
            return tuple((ours, other) for other in self.than)
        return tuple((upper, lower) for lower, upper in pairwise(self.rising))


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
        return _without(faults, self)

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
        return _without(faults, self)

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


def load_benchmark(name: str | Path) -> Benchmark:
    """Load a benchmark by the name of a shipped definition or by the path of a TOML file.

    See `lapbench.inheritance` for what a definition may leave to another one; paths in either are taken from
    the folder of this one.
    Errors: UnknownNameError with the nearest right name; DefinitionError that lists every fault at once.
    """
    path = _path_of(name)

    def find(base: str) -> Source:
        return read_source(path.parent / base if base.endswith(".toml") else _path_of(base))

    return _rooted(validate(resolve(read_source(path), find), Benchmark), path.parent)


def _path_of(name: str | Path) -> Path:
    if Path(name).suffix == ".toml":
        return Path(name)
    known = {path.stem: path for path in shipped("benchmarks")}
    if str(name) not in known:
        raise UnknownNameError("benchmark", str(name), known)
    return known[str(name)]


def _rooted(benchmark: Benchmark, folder: Path) -> Benchmark:
    """Resolve the paths in a definition against its folder."""
    data = benchmark.data
    if data.manifest.endswith(".toml"):
        data = data.model_copy(update={"manifest": str(folder / data.manifest)})
    models = []
    for model in benchmark.models:
        if model.weights is not None:
            model = model.model_copy(update={"weights": folder / model.weights})
        recipe = model.recipe
        if recipe is not None and recipe.pretrained is not None and recipe.published is None:
            recipe = recipe.model_copy(update={"pretrained": folder / recipe.pretrained})
            model = model.model_copy(update={"recipe": recipe})
        models.append(model)
    return benchmark.model_copy(update={"data": data, "models": tuple(models)})


def shipped(folder: Literal["benchmarks", "data_manifests"]) -> list[Path]:
    """The TOML files that come with lapbench: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / folder
    return sorted((inside if inside.is_dir() else package.parent / folder).glob("*.toml"))


def select(
    benchmark: Benchmark,
    *,
    models: tuple[str, ...] = (),
    explainers: tuple[str, ...] = (),
    seed: int | None = None,
) -> Benchmark:
    """Return the benchmark with fewer models or explainers (by row or registered name), or another seed.

    Claims that speak of what is left out are left out, too.
    Errors: UnknownNameError for a name that the definition does not hold.
    """
    kept_models, kept_explainers = benchmark.models, benchmark.explainers
    for name in models:
        if name not in {m.name for m in kept_models}:
            raise UnknownNameError(f"model in {benchmark.name}", name, [m.name for m in kept_models])
    for name in explainers:
        if name not in {x for e in kept_explainers for x in (e.name, e.row)}:
            raise UnknownNameError(f"explainer in {benchmark.name}", name, [e.name for e in kept_explainers])
    if models:
        kept_models = tuple(m for m in kept_models if m.name in models)
    if explainers:
        kept_explainers = tuple(e for e in kept_explainers if e.name in explainers or e.row in explainers)
    if seed is not None:
        kept_models = tuple(m if m.weights else m.model_copy(update={"seeds": (seed,)}) for m in kept_models)
    there = {NO_NETWORK, *(m.name for m in kept_models)}, {None, *(e.row for e in kept_explainers)}
    claims = tuple(
        claim
        for claim in benchmark.claims
        if all(t.model in there[0] and t.explainer in there[1] for pair in claim.pairs for t in pair)
    )
    return benchmark.model_copy(
        update={"models": kept_models, "explainers": kept_explainers, "claims": claims}
    )


def given(benchmark: Benchmark, weights: Path, model: str = "") -> Benchmark:
    """Return the benchmark on one of its models with given weights instead of trained ones.

    Errors: UnknownNameError for a name that the definition does not hold; DefinitionError for no name where
    it holds several models.
    """
    names = [m.name for m in benchmark.models]
    if not model and len(names) > 1:
        raise DefinitionError(
            f"{benchmark.name} has {len(names)} models: say whose weights {weights} are, "
            f"as NAME={weights}; the names are {', '.join(names)}"
        )
    chosen = select(benchmark, models=(model or names[0],))
    loaded = {"weights": weights, "recipe": None, "seeds": (0,)}
    return chosen.model_copy(update={"models": (chosen.models[0].model_copy(update=loaded),)})


def _without(faults: list[str], table: T) -> T:
    """Return a table that has no fault. Errors: ValueError with all faults that it has."""
    if faults:
        raise ValueError("; ".join(faults))
    return table


def _or_value_error(ask: Any) -> str:
    try:
        return str(ask())
    except UnknownNameError as error:
        raise ValueError(str(error)) from None
