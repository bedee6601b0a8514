"""Definitions that say only what is their own: ``extends`` another one, and ``[every_model]``.

``extends = "self_explaining"`` takes a definition as the base, and what is said here stands over it: tables
are joined key by key, models by their name, and any other value is replaced, lists and parameters included.
Then each model is laid over ``[every_model]``, which holds what all have in common.
"""

from collections.abc import Callable
from typing import Any

from lapbench.errors import DefinitionError
from lapbench.toml import Path_, Source

Data = dict[str, Any]
_OWN = ("name", "title")
"""What a definition never has from another."""


def resolve(source: Source, find: Callable[[str], Source]) -> Source:
    """Return the definition in full. find: reads a base by what ``extends`` says.

    Errors: DefinitionError for a definition that extends itself; those of ``find``.
    """
    return _spread(_extended(source, find, (source.where,)))


def _extended(source: Source, find: Callable[[str], Source], seen: tuple[str, ...]) -> Source:
    if "extends" not in source.data:
        return source
    own = {key: value for key, value in source.data.items() if key != "extends"}
    place, name = source.place(("extends",)), source.data["extends"]
    if not isinstance(name, str):
        raise DefinitionError(f"{place}: extends: a definition's name or path was wanted (found {name!r})")
    base = find(name)
    if base.where in seen:
        raise DefinitionError(f"{place}: extends: {' extends '.join((*seen, base.where))}")
    base = _extended(base, find, (*seen, base.where))
    inherited = {key: value for key, value in base.data.items() if key not in _OWN}
    return _laid_over(Source(base.where, inherited, base.places), Source(source.where, own, source.places))


def _laid_over(base: Source, own: Source) -> Source:
    """Join two definitions; a place is where what is valid was said last."""
    data, models = _joined(base.data, own.data), list(_tables(base.data.get("models")))
    waiting = {str(model.get("name")): number for number, model in enumerate(models)}
    numbers = []  # of each own model, in the list of all
    for model in _tables(own.data.get("models")):
        number = waiting.pop(str(model.get("name")), len(models))
        if number < len(models):
            models[number] = _joined(models[number], model)
        else:
            models.append(model)
        numbers.append(number)

    def moved(path: Path_) -> Path_:
        match path:
            case ("models", int(number), *rest):
                return ("models", numbers[number], *rest)
        return path

    replaced = {key for key, value in own.data.items() if not isinstance(value, dict)} | {*_OWN}
    if numbers:
        data["models"] = models
        replaced.discard("models")
    places = {path: place for path, place in base.places.items() if path[0] not in replaced}
    return Source(own.where, data, places | {moved(path): place for path, place in own.places.items()})


def _spread(source: Source) -> Source:
    """Lay every model over what all have in common."""
    common = source.data.get("every_model", {})
    if not isinstance(common, dict):
        place = source.place(("every_model",))
        raise DefinitionError(f"{place}: every_model: a table was wanted (found {common!r})")
    models = list(_tables(source.data.get("models")))
    if not common or not models:
        return source
    data = {key: value for key, value in source.data.items() if key != "every_model"}
    places = dict(source.places)
    for path, place in source.places.items():
        if path[0] == "every_model":
            for number in range(len(models)):
                places.setdefault(("models", number, *path[1:]), place)
    return Source(source.where, data | {"models": [_joined(common, model) for model in models]}, places)


def _joined(base: Data, own: Data) -> Data:
    """Lay a table over another, key by key."""
    tables = own.keys() - {"parameters"}
    both = {key for key in tables if isinstance(own[key], dict) and isinstance(base.get(key), dict)}
    return base | own | {key: _joined(base[key], own[key]) for key in both}


def _tables(value: Any) -> list[Data]:
    """The tables of a list, or none where it is no list of tables: validation says so."""
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else []
