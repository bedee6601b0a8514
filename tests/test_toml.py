"""Definitions: every fault at once, with its line and the nearest right name."""

import pytest

from lapbench.errors import DefinitionError
from lapbench.toml import Table, locate_keys, parse_toml


class Wheel(Table):
    size: int


class Car(Table):
    name: str
    wheels: tuple[Wheel, ...] = ()
    spare: Wheel | None = None


def faults(text: str) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        parse_toml(text, Car, where="car.toml")
    return str(caught.value).splitlines()


def test_valid_text_becomes_data():
    car = parse_toml('name = "x"\n[[wheels]]\nsize = 3\n', Car, where="car.toml")

    assert car == Car(name="x", wheels=(Wheel(size=3),))


def test_every_fault_is_listed_with_its_line():
    text = "\n".join(
        [
            "# a car",
            'nam = "x"',
            "[[wheels]]",
            "size = 1",
            "[[wheels]]",
            'size = "big"',
            "[spare]",
            "sise = 3",
        ]
    )

    assert faults(text) == [
        "car.toml: 5 faults",
        "  car.toml:1: name: this field is missing",
        "  car.toml:6: wheels.2.size: Input should be a valid integer, unable to parse string as an integer"
        " (found 'big')",
        "  car.toml:7: spare.size: this field is missing",
        "  car.toml:8: spare.sise: unknown field; did you mean 'size'?",
        "  car.toml:2: nam: unknown field; did you mean 'name'?",
    ]


def test_invalid_toml_says_where():
    assert faults("name = ") == ["car.toml: not valid TOML: Invalid value (at end of document)"]


def test_missing_file_is_named(tmp_path):
    from lapbench.toml import read_toml

    with pytest.raises(DefinitionError, match=r"no\.toml: cannot be read"):
        read_toml(tmp_path / "no.toml", Car)


def test_keys_inside_multi_line_strings_are_not_keys():
    text = 'about = """\nname = 1\n[table]\n"""\nname = 2\n[a.b]\n"quoted key" = 1\nx.y = 2\n'

    assert locate_keys(text) == {
        ("about",): 1,
        ("name",): 5,
        ("a", "b"): 6,
        ("a", "b", "quoted key"): 7,
        ("a", "b", "x", "y"): 8,
    }


def test_tables_inside_arrays_of_tables_are_counted():
    text = "[[m]]\n[m.p]\nk = 1\n[[m]]\n[m.p]\nk = 2\n[[m.e]]\nz = 1\n"

    lines = locate_keys(text)

    assert lines["m", 0, "p", "k"] == 3
    assert lines["m", 1, "p", "k"] == 6
    assert lines["m", 1, "e", 0, "z"] == 8
