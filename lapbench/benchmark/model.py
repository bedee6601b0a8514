"""A network to be explained."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from lapbench.benchmark.fields import RowName, known_name, without
from lapbench.benchmark.layers import AnteHoc, Bla, Plug
from lapbench.benchmark.training import Recipe
from lapbench.registry import architectures, check_parameters
from lapbench.toml import Table


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
        return known_name(lambda: architectures.get(name).name)

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
        faults += self._attention_faults()
        table = architectures.get(self.architecture).parameters
        try:
            check_parameters("architecture", self.architecture, table, self.parameters)
        except ValueError as error:
            faults.append(str(error))
        return without(faults, self)

    def _attention_faults(self) -> list[str]:
        """What is wrong with attention behind a trained network, which is to stay as it is."""
        if self.recipe is None:
            return []
        taught, preset = self.recipe.teacher == "network", self.bla.preset if self.bla else None
        faults = []
        if taught and not self.bla:
            faults.append("teacher = 'network' is for attention, which needs [models.bla]")
        if preset == "L2X" and not taught:
            faults.append(
                "L2X learns what a trained network answers: its recipe needs teacher = 'network' "
                "(L2X-F learns labels)"
            )
        if (taught or preset in ("L2X", "BLA-PH")) and not self.recipe.adds_only("bla"):
            name = preset if preset in ("L2X", "BLA-PH") else "teacher = 'network'"
            faults.append(
                f"{name} leaves a trained network as it is: its recipe needs start or pretrained, and "
                'learning = ["bla"] (BLA-T and L2X-F train more)'
            )
        return faults

    @model_serializer(mode="wrap")
    def _without_what_is_younger(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is younger than some digests where it is absent."""
        younger = ("bla", "antehoc", "concept_mlp", "decoder")
        return {key: v for key, v in write(self).items() if key not in younger or v is not None}
