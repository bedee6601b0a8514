"""What a benchmark found, as validated data: rows, the leaderboard, and the scores of every image beside it.

The files hold only what the same inputs give again, byte for byte: no dates, no durations. NaN and infinity
never reach JSON; they become null, and the row says why. Files appear whole: written under a temporary name,
then renamed.
"""

import hashlib
import json
import math
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from lapbench.digest import digest_of
from lapbench.errors import ResultError, suggest
from lapbench.report.statistics import Interval
from lapbench.types import Task

SCHEMA_VERSION = 1
"""Raised whenever a reader of an older version could misunderstand a file."""

Selection = Literal["threshold", "top-k", "native"]
"""How a map becomes a mask: by a fitted threshold, by the pixels of the truth, or by the map's own 0.5."""

Ranking = Literal["thresholding", "top-k"]
"""Rows of one ranking compete."""

RowKey = tuple[str, str, str, bool]
"""What a row is a row of: model, explainer, selection, and whether the weights are random."""


def _finite(value: Any) -> Any:
    """Turn NaN and infinity into null, also inside lists and tables, and put the keys of tables in order."""
    if isinstance(value, Mapping):
        return {str(key): _finite(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # a NumPy scalar
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _checked(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Turn NaN and infinity into null where there are any."""
    try:
        return check(value)
    except ValidationError:
        return check(_finite(value))


Number = Annotated[float | None, Field(strict=True), BeforeValidator(_finite)]
Line = Annotated[
    tuple[Annotated[float | None, Field(strict=True)], ...],
    WrapValidator(_checked),
]
"""Many numbers: their NaN is looked for only where plain numbers are refused: ten times as fast."""
Provenance = Annotated[dict[str, JsonValue], BeforeValidator(_finite)]
Count = Annotated[int, Field(ge=0, strict=True)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A part of a result: frozen, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(Record):
    """A mean over images and its confidence interval; null where there is none."""

    mean: Number = None
    ci_low: Number = None
    ci_high: Number = None

    @classmethod
    def of(cls, interval: Interval) -> Self:
        """Return an interval as part of a result."""
        return cls(mean=interval.mean, ci_low=interval.low, ci_high=interval.high)


class Curve(Record):
    """A score as a function of something: y at each x. n: the images behind each point, where they vary."""

    x: tuple[Number, ...]
    y: tuple[Number, ...]
    n: tuple[Count, ...] | None = None

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        found = {len(self.x), len(self.y), len(self.x if self.n is None else self.n)}
        if len(found) > 1:
            raise ValueError("x, y and n of a curve must be equally long")
        return self


class Counts(Record):
    """Images of the row whose map or prediction says nothing; never left out silently."""

    n_nan: Count = 0  # the map holds NaN or infinity
    n_flat: Count = 0  # the map has one value throughout, or no positive one
    n_empty: Count = 0  # nothing was selected: the predicted mask is empty


class SeedResult(Record):
    """The row's number from one training."""

    seed: int
    mean: Number = None
    threshold: Number = None


class CompletenessError(Record):
    """How far the attributions of an image are from adding up to f(x) − f(baseline), relative to that."""

    median: Number
    max: Number
    bound: Annotated[float, Field(gt=0)]  # of the protocol

    @property
    def exceeded(self) -> bool:
        """Whether an image lies above the bound, or the error is not a number at all."""
        return self.max is None or self.max > self.bound


class ImageScoresFile(Record):
    """Where a row's scores by image are: a path relative to the leaderboard's folder, and their checksum."""

    file: Annotated[str, Field(pattern=r"^scores/[a-z0-9][a-z0-9_-]*\.json$")]
    checksum: Sha256


class Row(Record):
    """One number of the leaderboard: a model, an explainer, a selection, and all that stands behind it.

    mean: over the n images that have a score. n_failed: images that should have one and do not. A row is
    complete when every image has its score; any other row says why in `reason` and has no rank. threshold:
    the one used (over several seeds their mean; null for top-k). fitted_threshold: the one fitted though
    another was used (native rows). orientation: +1, or −1 where the fit selects *below* the threshold.
    """

    model: Annotated[str, Field(min_length=1)]
    explainer: Annotated[str, Field(min_length=1)]
    selection: Selection
    score: Literal["iou"] = "iou"
    mean: Number = None
    ci_low: Number = None
    ci_high: Number = None
    n: Count = 0
    n_failed: Count = 0
    threshold: Number = None
    complete: StrictBool
    reason: str = ""
    provenance: Provenance = {}
    rank: Annotated[int, Field(ge=1)] | None = None
    group: Annotated[int, Field(ge=1)] | None = None  # rows of one cannot be told apart from its best
    control: bool = False  # a yardstick (random, centre, oracle ...), not a contestant
    randomised: bool = False  # the same explainer on the same network with random weights
    orientation: Literal[1, -1] | None = None
    fitted_threshold: Number = None
    counts: Counts = Counts()
    tied_fraction: Number = None  # top-k: share of selected pixels that the tie rule chose
    pointing_game: Estimate | None = None
    energy: Estimate | None = None
    measures: dict[str, Estimate] = {}  # further scores by name, of the same images ("auc", "oracle_iou" ...)
    curves: dict[str, Curve] = {}  # "iou_by_threshold", "iou_by_size"
    model_accuracy: Number = None  # on the scored split
    completeness_error: CompletenessError | None = None
    cells_per_object: Number = None  # side of the median object in pixels of the map, where it is coarse
    seeds: tuple[SeedResult, ...] = ()
    image_scores: ImageScoresFile | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_has_a_reason(cls, data: Any) -> Any:
        """Make a row whose mean is NaN or infinite an incomplete one that says so."""
        if not isinstance(data, Mapping) or "mean" not in data or _finite(data["mean"]) is not None:
            return data
        if data["mean"] is None and not data.get("complete"):
            return data
        reason = data.get("reason") or f"the mean is {data['mean']}, not a number"
        return {**data, "complete": False, "reason": reason}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.complete and (self.mean is None or self.n == 0 or self.n_failed):
            raise ValueError(
                "a complete row has a mean over at least one image and no failed image "
                f"(found mean {self.mean}, n {self.n}, n_failed {self.n_failed})"
            )
        if not self.complete and not self.reason:
            raise ValueError("an incomplete row must say why in 'reason'")
        if self.rank is not None and not self.complete:
            raise ValueError(f"an incomplete row is never ranked (found rank {self.rank})")
        if self.ci_low is not None and self.ci_high is not None and self.ci_low > self.ci_high:
            raise ValueError(f"the interval is upside down: [{self.ci_low}, {self.ci_high}]")
        return self

    @property
    def key(self) -> RowKey:
        """What the row is a row of; no two rows of a leaderboard share it."""
        return (self.model, self.explainer, self.selection, self.randomised)

    @property
    def submitted_by(self) -> tuple[str, ...]:
        """Who submitted the row, where its leaderboard was joined; nobody elsewhere."""
        found = self.provenance.get("submitted_by")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def ranking(self) -> Ranking:
        """The ranking that the row belongs to: by thresholding, fitted or its own, or by top-k."""
        return "top-k" if self.selection == "top-k" else "thresholding"


class LapSummary(Record):
    """What one LAP of a model says alone: how often it is right, and how often it agrees with the model."""

    predictivity: Estimate
    faithfulness: Estimate


class ModelSummary(Record):
    """How well a model answers the scored split: a map from a model that cannot says nothing.

    measures: accuracy, balanced_accuracy and, of two classes, sensitivity and specificity, of ten and more
    top_5_accuracy, with their intervals; with BLA those of its two outputs, accuracy_soft and accuracy_hard,
    how often they agree, agreement_hard, and how many positions they select, selected. Of landmarks
    normalised_error (lower is better) and landmark_accuracy, of captions word_accuracy and caption_accuracy.
    classes: of other tasks, all targets. laps: its LAPs, shallow to deep, where each stands alone. laps_read:
    the same, as a two-layer network reads their concept features, where the definition asks for one.
    """

    name: Annotated[str, Field(min_length=1)]
    task: Task = "classification"
    accuracy: Number = None
    balanced_accuracy: Number = None
    measures: dict[str, Estimate] = {}
    laps: tuple[LapSummary, ...] = ()
    laps_read: tuple[LapSummary, ...] = ()
    classes: Annotated[int, Field(ge=2)]
    n: Count  # images of the scored split
    seeds: tuple[int, ...] = ()
    provenance: Provenance = {}

    @property
    def skill(self) -> float | None:
        """Balanced accuracy on a scale where guessing is 0 and perfection 1."""
        if self.balanced_accuracy is None:
            return None
        return (self.balanced_accuracy * self.classes - 1) / (self.classes - 1)

    @property
    def near_chance(self) -> bool:
        """Whether a classifier is hardly better than guessing: a skill below 0.2, or none that is known."""
        return self.task == "classification" and (self.skill is None or self.skill < 0.2)

    @property
    def below_chance(self) -> bool:
        """Whether guessing would clearly be better: classes may have been taken for each other."""
        return (
            self.task == "classification"
            and self.skill is not None
            and self.skill < -0.2 / (self.classes - 1)
        )


class Power(Record):
    """What a ranking can tell apart.

    pairs: of ranked rows. told_apart: pairs whose means differ beyond chance, corrected for all pairs.
    detectable_effect: the true difference that is found with a probability of 0.8, for the median pair.
    """

    pairs: Count
    told_apart: Count
    detectable_effect: Number = None


class Leaderboard(Record):
    """All rows of one benchmark, with what its models can do."""

    schema_version: Literal[1] = 1
    benchmark: Annotated[str, Field(min_length=1)]
    benchmark_version: Annotated[int, Field(ge=1)]
    title: str = ""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of every interval
    models: tuple[ModelSummary, ...] = ()
    rows: tuple[Row, ...] = ()
    power: dict[Ranking, Power] = {}
    provenance: Provenance = {}  # what all rows share: data, definition, versions

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [f"row {row.key}" for row in self.rows] + [f"model {model.name!r}" for model in self.models]
        if twice := sorted(name for name, times in Counter(names).items() if times > 1):
            raise ValueError(f"found twice: {'; '.join(twice)}")
        return self

    @property
    def protocol(self) -> dict[str, Any]:
        """The protocol that all rows share, as far as it was recorded."""
        found = self.provenance.get("protocol")
        return dict(found) if isinstance(found, dict) else {}


class ImageScores(Record):
    """The scores of every image behind one row.

    scores: by the name of the score ("iou", "pointing_game", "energy" ...), (seeds, images); null where an
    image has none. ids: of the images, in the order of the columns. seeds: of the trainings, in that of the
    rows.
    """

    schema_version: Literal[1] = 1
    benchmark: Annotated[str, Field(min_length=1)]
    benchmark_version: Annotated[int, Field(ge=1)]
    model: Annotated[str, Field(min_length=1)]
    explainer: Annotated[str, Field(min_length=1)]
    selection: Selection
    randomised: bool = False
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    ids: tuple[str, ...]
    scores: dict[str, tuple[Line, ...]]

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        if "iou" not in self.scores:
            raise ValueError(f"scores must hold 'iou' (found {', '.join(self.scores) or 'none'})")
        if len(set(self.ids)) < len(self.ids):
            raise ValueError("image ids must differ")
        for name, table in self.scores.items():
            wanted, found = [len(self.ids)] * len(self.seeds), [len(line) for line in table]
            if found != wanted:
                raise ValueError(f"{name!r} needs one value per image in every seed: {wanted}, found {found}")
        return self

    @property
    def file(self) -> str:
        """The path of the file in the leaderboard's folder: readable, and unlike that of any other row."""
        parts = [self.model, self.explainer, self.selection] + ["random weights"] * self.randomised
        words = re.findall(r"[a-z0-9]+", " ".join(parts).lower())
        return f"scores/{'-'.join(words)[:80]}-{digest_of(parts)[:8]}.json"


_MEND = "run the benchmark again to remake it"
M = TypeVar("M", bound=Record)


def write_leaderboard(path: Path, leaderboard: Leaderboard) -> None:
    """Write a leaderboard as JSON; the same leaderboard gives the same bytes. Errors: as `write_record`."""
    write_record(path, leaderboard)


def read_leaderboard(path: Path) -> Leaderboard:
    """Read a leaderboard. Errors: ResultError that names the file, every fault and the mend."""
    return read_record(path, Leaderboard)


def write_image_scores(folder: Path, scores: ImageScores) -> ImageScoresFile:
    """Write the scores of a row beside the leaderboard in `folder`; return what the row says about them."""
    content = _to_json(folder / scores.file, scores)
    write_file(folder / scores.file, content)
    return ImageScoresFile(file=scores.file, checksum=hashlib.sha256(content).hexdigest())


def read_image_scores(folder: Path, row: Row) -> ImageScores:
    """Read the scores by image of a row of the leaderboard in `folder`.

    Errors: ResultError for a row without such scores, and for a file that is missing, changed or not its own.
    """
    if row.image_scores is None:
        raise ResultError(f"{row.model}, {row.explainer} ({row.selection}): no scores by image were recorded")
    path = folder / row.image_scores.file
    content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if found != row.image_scores.checksum:
        raise ResultError(
            f"{path}: not the file that the leaderboard was made with: "
            f"SHA-256 {row.image_scores.checksum[:12]}… wanted, {found[:12]}… found; {_MEND}"
        )
    scores = _from_json(path, content, ImageScores)
    if (scores.model, scores.explainer, scores.selection, scores.randomised) != row.key:
        other = f"{scores.model}, {scores.explainer} ({scores.selection})"
        raise ResultError(f"{path}: holds the scores of another row: {other}; {_MEND}")
    return scores


def read_record(path: Path, model: type[M], *, mend: str = _MEND) -> M:
    """Read a JSON file of ours. Errors: ResultError that names the file, every fault and the mend."""
    return _from_json(path, _read(path, mend), model, mend)


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON.

    Errors: ResultError for one that could not be read again; nothing is written.
    """
    write_file(path, _to_json(path, record))


def json_schema(model: type[Record] = Leaderboard) -> dict[str, Any]:
    """Return the JSON Schema of a file of ours: of leaderboard.json, if no other record is given.

    They are published in the folder ``schemas`` of this room, by the version that stands in the files.
    """
    schema = model.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: under a temporary name in the same folder, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_json(path: Path, record: Record) -> bytes:
    """The content of a file, which is held to the schema: a copy with other fields has not been."""
    content = _in_lines(record.model_dump(mode="json")).encode()
    _from_json(path, content, type(record))
    return content


def _in_lines(data: dict[str, Any]) -> str:
    """Write each entry, and each item of a list, on a line of its own: so rows are compared line by line."""
    write = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    entries = []
    for key, value in data.items():
        items = ",\n".join(f"  {write(item)}" for item in value) if isinstance(value, list) else ""
        entries.append(f" {write(key)}: [\n{items}\n ]" if items else f" {write(key)}: {write(value)}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _read(path: Path, mend: str = _MEND) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ResultError(f"{path}: there is no such result; {mend}") from None
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from None


def _from_json(path: Path, content: bytes, model: type[M], mend: str = _MEND) -> M:
    """Validate a file of ours, or say what is wrong with it."""
    try:
        data = json.loads(content.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise ResultError(f"{path}: not a text file; {mend}") from None
    except RecursionError:
        raise ResultError(f"{path}: nested too deeply to be a result; {mend}") from None
    except ValueError as error:
        raise ResultError(f"{path}: not valid JSON, perhaps cut short: {error}; {mend}") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version is None:
        raise ResultError(f"{path}: not a result of lapbench: it has no 'schema_version'")
    if version != SCHEMA_VERSION:
        raise ResultError(
            f"{path}: schema_version {SCHEMA_VERSION} wanted, {version!r} found; "
            "read it with the version of lapbench that wrote it, or run the benchmark again"
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = faults_of(error, model)
        shown = faults[:20] + ([f"… and {len(faults) - 20} more"] if len(faults) > 20 else [])
        plural = "fault" if len(faults) == 1 else "faults"
        listed = "".join(f"\n  {line}" for line in shown)
        raise ResultError(f"{path}: {len(faults)} {plural}{listed}") from None


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Say each fault of a file of ours in a line: where, what was wanted and what was found."""
    return [_fault(item, model) for item in error.errors(include_url=False)]


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is no number of JSON")


def _fault(item: Any, model: type[BaseModel]) -> str:
    """Say where in the file, what was wanted and what was found; rows are counted from 1."""
    loc: tuple[str | int, ...] = item["loc"]
    name = ".".join(str(part + 1) if isinstance(part, int) else part for part in loc) or "the file"
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown field{suggest(str(loc[-1]), _fields_at(model, loc[:-1]))}"
    if item["type"] == "missing":
        return f"{name}: this field is missing"
    found = repr(item["input"])
    shown = f" (found {found})" if len(found) <= 60 and not isinstance(item["input"], dict) else ""
    return f"{name}: {item['msg'].removeprefix('Value error, ')}{shown}"


def _fields_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Return the field names of the record that a location leads to."""
    here = model
    for part in loc:
        if isinstance(part, str) and part in here.model_fields:
            pending = [here.model_fields[part].annotation]
            while pending:
                annotation: Any = pending.pop()
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    here = annotation
                pending.extend(getattr(annotation, "__args__", ()))
    return list(here.model_fields)
