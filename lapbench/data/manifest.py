"""A data manifest: what a data set is, where it comes from, and how it is read and split."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from lapbench.benchmark import shipped
from lapbench.data.captions import check_vocabulary
from lapbench.data.landmarks import landmark_names
from lapbench.errors import UnknownNameError
from lapbench.registry import check_parameters, readers
from lapbench.toml import Table, read_toml
from lapbench.types import Task

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Reader(Table):
    """The registered function that reads the annotation, and its parameters."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return readers.get(name).name
        except UnknownNameError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _parameters_fit(self) -> Self:
        check_parameters("reader", self.name, readers.get(self.name).parameters, self.parameters)
        return self


class Part(Table):
    """One split: the samples that a list file names, or a share of the groups that the reader yields.

    Without ``ids``, a group (patient, board; by default the image itself) belongs here when its hash with the
    seed, a number in [0, 1), lies in [share[0], share[1]): the whole group goes the same way on every
    machine.
    """

    source: str | None = None  # the reader's split; none: all samples
    share: tuple[float, float] = (0.0, 1.0)
    seed: int = 0
    ids: str | None = None  # a text file under the data root, one sample id a line

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not 0 <= self.share[0] < self.share[1] <= 1:
            raise ValueError(f"share must be two rising numbers in [0, 1] (found {list(self.share)})")
        if self.ids is not None and {"source", "share", "seed"} & self.model_fields_set:
            raise ValueError("give either ids or source, share and seed, not both")
        return self


class ClassList(Table):
    """Class names that stand in a file of the data set, being too many for a manifest, in order of labels.

    files: paths under the data root, of which the first that is there counts: text with a name at the start
    of each line, or JSON of the form ``{"0": ["n01440764", "tench"], …}``. count: how many classes there are,
    so that a folder with some of them is not taken for the data set.
    """

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    count: PositiveInt


class Manifest(Table):
    """What a data set is.

    task: what a network answers. classes: their order gives the labels; or class_list: the file that lists
    them. Of landmarks they are the coordinates, NAME_x and NAME_y for each; of captions the vocabulary, whose
    first entry is ``<end>``. folder: where the data
    lies under a data root that holds several data sets. root: the data root where neither an option nor the
    environment names one, relative to the manifest. unlisted: whether a sample whose label is no class is
    refused, or dropped on purpose (the third class of a two-class task). embedded: the reader makes the
    images itself; no files are looked for. may_miss: the largest share of samples whose image may be absent;
    they are left out and counted. files: SHA-256 of annotation files by their path under the root, checked
    where the file is there. splits: declared splits; none: as the reader yields them.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    version: PositiveInt
    title: str
    about: str = ""
    licence: str
    url: str = ""
    citation: str = ""
    task: Task = "classification"
    classes: tuple[str, ...] = ()
    class_list: ClassList | None = None
    unlisted: Literal["refuse", "drop"] = "refuse"
    embedded: bool = False
    folder: str = ""
    root: Path | None = None
    may_miss: Annotated[float, Field(ge=0, lt=1)] = 0.0
    reader: Reader
    files: dict[str, Digest] = Field(default_factory=dict)
    splits: dict[str, Part] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.classes) == (self.class_list is not None):
            raise ValueError("give either classes or class_list")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"class names must differ (found {list(self.classes)})")
        if self.task != "classification":
            if self.class_list is not None:
                raise ValueError(f"task {self.task!r}: name the targets in classes, not in class_list")
            {"landmarks": landmark_names, "captions": check_vocabulary}[self.task](self.classes)
        if self.embedded and (self.folder or self.root or self.files or self.class_list):
            raise ValueError("an embedded data set has no folder, root, files or class_list")
        _check_shares(self.splits)
        return self


def load_manifest(name: str | Path) -> Manifest:
    """Load a manifest by the name of a shipped one or by the path of a TOML file.

    Errors: UnknownNameError with the nearest right name; DefinitionError that lists every fault at once.
    """
    path = Path(name)
    if path.suffix != ".toml":
        known = {p.stem: p for p in shipped("data_manifests")}
        if str(name) not in known:
            raise UnknownNameError("data manifest", str(name), known)
        path = known[str(name)]
    manifest = read_toml(path, Manifest)
    if manifest.root is not None:
        manifest = manifest.model_copy(update={"root": path.parent / manifest.root})
    return manifest


def _check_shares(splits: dict[str, Part]) -> None:
    """Refuse shares of one source that overlap or that are hashed with different seeds."""
    shared = [(name, part) for name, part in splits.items() if part.ids is None]
    for n, (name, part) in enumerate(shared):
        for other_name, other in shared[:n]:
            if None not in (part.source, other.source) and part.source != other.source:
                continue
            if part.seed != other.seed:
                raise ValueError(f"splits {other_name!r} and {name!r} share a source: give them one seed")
            if part.share[0] < other.share[1] and other.share[0] < part.share[1]:
                raise ValueError(f"splits {other_name!r} and {name!r} overlap in the same source")
