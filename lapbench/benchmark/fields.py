"""What several tables of a definition are made of."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field

from lapbench.errors import UnknownNameError
from lapbench.toml import Table

T = TypeVar("T", bound=Table)
Fraction = Annotated[float, Field(gt=0, lt=1)]
NONE = BeforeValidator(lambda value: None if value is False else value)
"""TOML has no null, and says false for none."""
Area = Annotated[Fraction | None, NONE]
"""A share of a map's pixels."""
RowName = Annotated[str, Field(pattern=r"^[^,\r\n]+$", max_length=60)]
"""Commas separate names on the command line."""


def without(faults: list[str], table: T) -> T:
    """Return a table that has no fault. Errors: ValueError with all faults that it has."""
    if faults:
        raise ValueError("; ".join(faults))
    return table


def known_name(find: Callable[[], str]) -> str:
    """Return the name that is found. Errors: ValueError, which pydantic collects, for an unknown one."""
    try:
        return find()
    except UnknownNameError as error:
        raise ValueError(str(error)) from None
