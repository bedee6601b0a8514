"""Definitions from files, whole or in part."""

from pathlib import Path
from typing import Literal

from lapbench.benchmark.definition import NO_NETWORK, Benchmark
from lapbench.benchmark.inheritance import resolve
from lapbench.errors import DefinitionError, UnknownNameError
from lapbench.toml import Source, read_source, validate


def load_benchmark(name: str | Path) -> Benchmark:
    """Load a benchmark by the name of a shipped definition or by the path of a TOML file.

    See `lapbench.benchmark.inheritance` for what a definition may leave to another one; paths in either are
    taken from the folder of this one.
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
    package = Path(__file__).parents[1]
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
