"""Names of results: equal for equal content, different for anything else, never by address."""

import hashlib
from pathlib import Path

import pytest

import lapbench
from lapbench.benchmark import Protocol
from lapbench.digest import digest_of, digest_of_code, digest_of_file, plain


def test_it_is_the_sha256_of_canonical_json():
    assert (
        digest_of({"b": [1, 2.5], "a": "é"}) == hashlib.sha256('{"a":"é","b":[1,2.5]}'.encode()).hexdigest()
    )


def test_order_of_keys_and_kind_of_sequence_do_not_matter():
    assert digest_of({"a": (1, 2), "b": None}) == digest_of({"b": None, "a": [1, 2]})


@pytest.mark.parametrize("other", [[1, 2], [1], ["1"], [1.5], [True], [[1]], {"1": None}, None, "1", ""])
def test_other_content_has_another_name(other):
    assert digest_of(other) != digest_of([1.25])


def test_a_table_counts_by_its_fields():
    assert digest_of(Protocol()) == digest_of(Protocol().model_dump(mode="json"))
    assert digest_of(Protocol()) != digest_of(Protocol(sign="abs"))


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", Path("x"), float("nan"), float("inf"), [object()]]
)
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        digest_of(value)


def test_plain_turns_keys_into_text_and_leaves_values():
    assert plain({1: (2, {"x": Protocol().selections})}) == {
        "1": [2, {"x": ["threshold", "top-k", "native"]}]
    }


def test_a_file_is_read_in_blocks(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert digest_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_code_is_what_its_files_say_wherever_it_lies(tmp_path):
    def code(name, **files):
        for file, content in files.items():
            path = tmp_path / name / f"{file.replace('_', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (tmp_path / name / "notes.txt").write_text(name)
        return digest_of_code(tmp_path / name)

    one = code("one", a="x = 1", b_c="y = 2")
    assert one == code("two", b_c="y = 2", a="x = 1")
    assert (
        len({one, code("3", a="x = 2", b_c="y = 2"), code("4", a="x = 1", c="y = 2"), code("5", a="x = 1")})
        == 4
    )
    assert digest_of_code() == digest_of_code(Path(lapbench.__file__).parent)
