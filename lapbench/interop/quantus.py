"""lapbench's explainers for Quantus' metrics, and Quantus' metrics for stored maps."""

import copy
import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lapbench.errors import ExplainerError, ScoreError
from lapbench.explain import explain
from lapbench.explain.foreign import Attributor
from lapbench.interop.library import library
from lapbench.registry import ExplainerSpec, check_parameters, explainers
from lapbench.score import upsample
from lapbench.score.localisation import Mode
from lapbench.score.pixels import check_masks
from lapbench.store import Shard
from lapbench.types import FloatArray, MaskArray


def quantus_explain_func(
    explainer: str | ExplainerSpec | Attributor | Callable[..., Any], **parameters: Any
) -> Callable[..., FloatArray]:
    """Make the ``explain_func`` that Quantus' metrics ask for.

    explainer: a registered name, a function, or what has Captum's ``attribute``. The result is called as
    ``(model, inputs, targets, *, device=None, **more)``: inputs (N, C, H, W) and targets (N,), arrays or
    tensors, are brought to the device and precision of the model (to the device that is given); more: further
    parameters of the explainer, what Quantus calls ``explain_func_kwargs``. It runs through
    `lapbench.explain.explain` and returns maps (N, 1, H, W) float32, up-sampled to the image by the
    explainer's declared rule (bilinear where none is declared) and otherwise raw. Needs no Quantus.
    Errors: UnknownNameError for a name; ExplainerError for parameters that the explainer does not take, and
    for one that needs the truth or sample ids, which Quantus does not hand over.
    """
    chosen = explainers.get(explainer) if isinstance(explainer, str) else explainer
    spec = chosen if isinstance(chosen, ExplainerSpec) else None
    if spec and spec.needs & {"masks", "ids"}:
        needed = " and ".join(sorted(spec.needs & {"masks", "ids"}))
        raise ExplainerError(f"explainer {spec.name!r} needs {needed}, which Quantus does not hand over")
    _check(spec, parameters)

    def explain_func(
        model: nn.Module, inputs: Any, targets: Any, *, device: str | torch.device | None = None, **more: Any
    ) -> FloatArray:
        _check(spec, parameters | more)
        like = next(model.parameters(), torch.zeros(()))
        images = _tensor(inputs).to(device or like.device, like.dtype)
        classes = _tensor(targets).to(images.device, torch.int64).reshape(-1)
        maps = explain(chosen, model, images, classes, parameters | more).values.cpu().numpy()
        size = (images.shape[2], images.shape[3])
        return upsample(maps, size, spec.upsample if spec else "bilinear")[:, None]

    return explain_func


@dataclass(frozen=True, eq=False)
class QuantusScores:
    """What a metric says of n maps.

    ids: (n,). scores: (n,) float64, NaN where the map or its truth is excluded. excluded: reason → how many.
    absolute: whether the metric took absolute values, so that a strongly negative pixel counted as important.
    """

    ids: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    excluded: Mapping[str, int]
    absolute: bool

    @property
    def mean(self) -> float:
        """The mean of the scores that there are; NaN where there is none."""
        there = self.scores[np.isfinite(self.scores)]
        return float(there.mean()) if there.size else math.nan


def quantus_scores(metric: Any, shard: Shard, masks: MaskArray, *, mode: Mode = "bilinear") -> QuantusScores:
    """Score the maps of a shard by a metric of Quantus, one number an image.

    metric: an object, such as ``quantus.RelevanceRankAccuracy()``, of those that look at maps and masks only:
    localisation (but Focus) and complexity. masks: (n, H, W) bool, the truth of each image, at the size that
    maps are brought to. mode: how, by the explainer's declared rule.

    Quantus divides by the largest value of a whole batch; here it is given one map at a time, so that no
    score depends on which maps stand beside it. What Quantus 0.6.0 gets wrong without a word is left out, NaN
    and counted: images without truth, for localisation (PointingGame counts a hit); maps that hold NaN or
    infinity; flat maps (their order is that of memory); maps negative everywhere (it refuses the batch); maps
    with any negative value, for a share of the sum (RelevanceMassAccuracy, AttributionLocalisation) without
    absolute or positive values (it is unbounded); and scores that Quantus itself leaves undefined.
    What remains its own: AttributionLocalisation and the complexity metrics take absolute values unless told
    otherwise, the other metrics do not (`QuantusScores.absolute`); of pixels that tie at a cut,
    RelevanceRankAccuracy and TopKIntersection take those that an unstable sort puts first; PointingGame
    counts a hit if any of the highest pixels lies in the truth.
    Errors: MissingLibraryError; ScoreError for other metrics, weighted variants (they raise, or are infinite
    for one image), aggregates, and maps and masks that do not fit.
    """
    quantus = library("quantus", "Quantus")
    judge = _judge(quantus, metric)
    check_masks(masks)
    if len(masks) != len(shard):
        raise ScoreError(f"one mask for each of {len(shard)} maps is wanted, found {len(masks)}")
    scores, excluded = np.full(len(shard), math.nan), Counter[str]()
    for index, (values, mask) in enumerate(zip(shard.maps, masks, strict=True)):
        values = upsample(values[None], mask.shape, mode)
        reason = _reason(quantus, judge, values, mask)
        if not reason:
            scores[index] = _score(judge, values[None], mask[None, None], shard.ids[index])
            reason = "" if math.isfinite(scores[index]) else "undefined by Quantus"
        if reason:
            scores[index] = math.nan
            excluded[reason] += 1
    return QuantusScores(shard.ids, scores, dict(excluded), bool(judge.abs))


def _tensor(values: Any) -> Tensor:
    """Return values as a tensor; arrays are copied, as torch takes none that is read-only or flipped."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _check(spec: ExplainerSpec | None, parameters: dict[str, Any]) -> None:
    """Raise ExplainerError for parameters that a registered explainer does not take."""
    if spec:
        try:
            check_parameters("explainer", spec.name, spec.parameters, parameters)
        except ValueError as error:
            raise ExplainerError(str(error)) from None


def _judge(quantus: Any, metric: Any) -> Any:
    """Return a copy of a metric, as it keeps what it scored. Errors: ScoreError for one of no use here."""
    if isinstance(metric, type):
        raise ScoreError(f"an object is wanted, not the class: {metric.__name__}()")
    base = quantus.metrics.base.Metric
    if not isinstance(metric, base):
        raise ScoreError(f"a metric of Quantus is wanted, found {type(metric).__name__}")
    name, category = type(metric).__name__, metric.evaluation_category.value
    if category not in ("Localisation", "Complexity") or isinstance(metric, quantus.Focus):
        raise ScoreError(
            f"{name} ({category}) needs the network, not only maps and masks: "
            "call it yourself, with quantus_explain_func(...) as its explain_func"
        )
    if getattr(metric, "weighted", False):
        raise ScoreError(f"{name}(weighted=True) is not computed: Quantus gets it wrong")
    if metric.return_aggregate:
        raise ScoreError(f"{name}(return_aggregate=True) gives one number for all, not one an image")
    judge = copy.copy(metric)
    judge.all_evaluation_scores = []
    return judge


def _reason(quantus: Any, judge: Any, values: FloatArray, mask: MaskArray) -> str:
    """Say why Quantus' score of a map (1, H, W) would be wrong, or nothing."""
    low, high = float(values.min()), float(values.max())
    shares = isinstance(judge, quantus.RelevanceMassAccuracy | quantus.AttributionLocalisation)
    signed = not (judge.abs or getattr(judge, "positive_attributions", False))
    if judge.evaluation_category.value == "Localisation" and not mask.any():
        return "no truth"
    if not (math.isfinite(low) and math.isfinite(high)):
        return "not finite"
    if low == high:
        return "flat"
    if high < 0:
        return "negative everywhere"
    return "negative values" if shares and signed and low < 0 else ""


def _score(judge: Any, maps: FloatArray, masks: MaskArray, sample: str) -> float:
    """Call a metric with one map and mask, both (1, 1, H, W), and keep to ourselves what it prints."""
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            (score,) = judge(
                model=None, x_batch=np.zeros_like(maps), y_batch=np.zeros(1, np.int64), a_batch=maps,
                s_batch=masks, channel_first=True,
            )  # fmt: skip
    except Exception as error:
        name = type(judge).__name__
        raise ScoreError(f"Quantus' {name} failed on {sample!r}: {type(error).__name__}: {error}") from error
    return float(score)
