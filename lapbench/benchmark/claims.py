"""Statements that results can contradict."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import (
    PositiveFloat,
    model_validator,
)

from lapbench.toml import Table


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
