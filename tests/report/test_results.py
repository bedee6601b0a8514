import json
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lapbench.errors import ResultError
from lapbench.pipeline.golden import GoldenMaps
from lapbench.report import (
    Baseline,
    ImageScores,
    Leaderboard,
    Row,
    json_schema,
    read_image_scores,
    read_leaderboard,
    write_image_scores,
    write_leaderboard,
)
from lapbench.report.claims import ClaimResults
from lapbench.report.results import SCHEMA_VERSION, write_file
from tests.report.examples import make_leaderboard, make_row

CONTRACT = [
    "model", "explainer", "selection", "score", "mean", "ci_low", "ci_high", "n", "n_failed", "threshold",
    "complete", "reason", "provenance",
]  # fmt: skip


def written(folder: Path) -> Path:
    path = folder / "leaderboard.json"
    write_leaderboard(path, make_leaderboard())
    return path


def make_scores(**fields: object) -> ImageScores:
    defaults = {
        "benchmark": "example",
        "benchmark_version": 3,
        "model": "ws-lap",
        "explainer": "Grad-CAM",
        "selection": "threshold",
        "seeds": (0, 1),
        "ids": ("a", "b", "c"),
        "scores": {"iou": ((0.1, math.nan, 0.3), (0.2, 0.5, 0.4)), "energy": ((1, 0, 1), (0, 0, 1))},
    }
    return ImageScores.model_validate(defaults | fields)


def test_the_file_has_the_fields_that_are_promised(tmp_path: Path) -> None:
    data = json.loads(written(tmp_path).read_text())

    assert {"schema_version", "benchmark", "benchmark_version", "rows"} <= set(data)
    for row in data["rows"]:
        assert list(row)[: len(CONTRACT)] == CONTRACT
    assert data["rows"][3]["selection"] == "native"
    assert data["rows"][3]["mean"] == 0.52
    assert data["rows"][3]["threshold"] == 0.5


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert read_leaderboard(written(tmp_path)) == make_leaderboard()


finite_or_not = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=50)
@given(
    mean=finite_or_not,
    threshold=finite_or_not,
    extra=st.dictionaries(st.text(), finite_or_not | st.lists(finite_or_not)),
)
def test_no_nan_reaches_the_file_and_all_else_survives(
    tmp_path_factory: pytest.TempPathFactory, mean: float, threshold: float, extra: dict[str, float]
) -> None:
    row = make_row("Grad-CAM", mean, ci_low=None, ci_high=None, threshold=threshold, provenance=extra)
    path = tmp_path_factory.mktemp("results") / "leaderboard.json"
    write_leaderboard(path, Leaderboard(benchmark="x", benchmark_version=1, rows=(row,)))

    strict = json.loads(path.read_text(), parse_constant=lambda token: pytest.fail(f"{token} in the file"))
    assert read_leaderboard(path).rows == (row,)
    assert row.complete == math.isfinite(mean)
    assert strict["rows"][0]["threshold"] == (threshold if math.isfinite(threshold) else None)


def test_the_order_of_keys_does_not_show_in_the_bytes(tmp_path: Path) -> None:
    for name, provenance in (("a", {"x": {"p": 1, "q": 2}, "y": 2}), ("b", {"y": 2, "x": {"q": 2, "p": 1}})):
        row = make_row("Grad-CAM", 0.5, provenance=provenance)
        write_leaderboard(tmp_path / name, Leaderboard(benchmark="x", benchmark_version=1, rows=(row,)))

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_mean_that_is_no_number_makes_the_row_incomplete_and_says_so() -> None:
    row = make_row("Grad-CAM", math.nan, ci_low=math.nan, ci_high=math.nan)

    assert (row.mean, row.ci_low, row.complete) == (None, None, False)
    assert row.reason == "the mean is nan, not a number"


def test_numbers_of_numpy_are_numbers() -> None:
    row = make_row("Grad-CAM", np.float32(0.5), ci_low=np.float64(0.25), ci_high=np.float32(np.inf))

    assert (row.mean, row.ci_low, row.ci_high) == (0.5, 0.25, None)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"n_failed": 1}, "a complete row has a mean over at least one image and no failed image"),
        ({"n": 0}, "(found mean 0.5, n 0, n_failed 0)"),
        ({"complete": False}, "an incomplete row must say why in 'reason'"),
        ({"complete": False, "reason": "r", "rank": 1}, "an incomplete row is never ranked (found rank 1)"),
        ({"ci_low": 0.6, "ci_high": 0.4}, "the interval is upside down: [0.6, 0.4]"),
        ({"selection": "otsu"}, "Input should be 'threshold', 'top-k' or 'native'"),
        ({"mean": "0.5"}, "Input should be a valid number"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_contradictory_rows_are_refused(fields: dict[str, object], fault: str) -> None:
    whole = {"model": "m", "explainer": "e", "selection": "threshold", "mean": 0.5, "n": 9, "complete": True}

    with pytest.raises(ValidationError) as caught:
        Row.model_validate(whole | fields)
    assert fault in str(caught.value)


def test_no_row_may_stand_twice() -> None:
    rows = (make_row("Grad-CAM", 0.5), make_row("Grad-CAM", 0.6))

    with pytest.raises(
        ValidationError, match=r"found twice: row \('ws-lap', 'Grad-CAM', 'threshold', False\)"
    ):
        Leaderboard(benchmark="x", benchmark_version=1, rows=rows)


def broken(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[:1000], "not valid JSON, perhaps cut short: "),
        (lambda _: "", "not valid JSON, perhaps cut short: Expecting value: line 1 column 1 (char 0)"),
        (lambda _: "[1, 2]", "not a result of lapbench: it has no 'schema_version'"),
        (lambda _: "[" * 100_000, "nested too deeply to be a result; run the benchmark again to remake it"),
        (lambda t: broken(t, '"mean":0.26', '"mean":NaN'), "NaN is no number of JSON"),
        (
            lambda t: broken(t, '"schema_version": 1', '"schema_version": 2'),
            "schema_version 1 wanted, 2 found; read it with the version of lapbench that wrote it, "
            "or run the benchmark again",
        ),
        (
            lambda t: broken(t, '"explainer":"Grad-CAM"', '"explaner":"Grad-CAM"'),
            "2 faults\n  rows.2.explainer: this field is missing\n"
            "  rows.2.explaner: unknown field; did you mean 'explainer'?",
        ),
        (
            lambda t: broken(t, '"n":200', '"n":-1'),
            "1 fault\n  rows.1.n: Input should be greater than or equal to 0 (found -1)",
        ),
        (
            lambda t: broken(t, '"complete":true', '"complete":"yes"'),
            "rows.1.complete: Input should be a valid",
        ),
        (lambda t: broken(t, '"rank":null', '"rank":1.5'), "rows.1.rank: Input should be a valid integer"),
    ],
)
def test_a_spoilt_file_is_named_with_its_fault(tmp_path: Path, spoil: object, message: str) -> None:
    path = written(tmp_path)
    path.write_text(spoil(path.read_text()))  # type: ignore[operator]

    with pytest.raises(ResultError) as caught:
        read_leaderboard(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="there is no such result; run the benchmark again to remake it"):
        read_leaderboard(tmp_path / "leaderboard.json")
    (tmp_path / "leaderboard.json").write_bytes(b"\x89HDF\r\n\xff")
    with pytest.raises(ResultError, match="not a text file"):
        read_leaderboard(tmp_path / "leaderboard.json")
    with pytest.raises(ResultError, match="cannot be read: Is a directory"):
        read_leaderboard(tmp_path)


def test_many_faults_are_not_all_listed(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = json.loads(path.read_text())
    data["rows"] = [{}] * 30
    path.write_text(json.dumps(data))

    with pytest.raises(ResultError, match=r"120 faults\n(.*\n){20}  … and 100 more$"):
        read_leaderboard(path)


def test_every_row_is_a_line_of_its_file(tmp_path: Path) -> None:
    """So that a changed row is a changed line, and provenance does not fill pages."""
    leaderboard = make_leaderboard()
    write_leaderboard(tmp_path / "a.json", leaderboard)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == leaderboard.model_dump(mode="json")
    lines = [line.strip().removesuffix(",") for line in text.splitlines()]
    assert [json.loads(line)["explainer"] for line in lines if '"explainer"' in line] == [
        row.explainer for row in leaderboard.rows
    ]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()

    with pytest.raises(TypeError):
        write_file(path, "text where bytes are wanted")  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_image_scores_are_found_again_by_their_row(tmp_path: Path) -> None:
    scores = make_scores()
    row = make_row("Grad-CAM", 0.3, image_scores=write_image_scores(tmp_path, scores))

    assert read_image_scores(tmp_path, row) == scores
    assert scores.scores["iou"] == ((0.1, None, 0.3), (0.2, 0.5, 0.4))
    assert row.image_scores is not None
    assert row.image_scores.file == scores.file
    assert scores.file.startswith("scores/ws-lap-grad-cam-threshold-")


@pytest.mark.parametrize("field", ["model", "explainer"])
def test_no_two_rows_share_a_file_nor_leave_the_folder(field: str) -> None:
    names = ["LAP 1", "lap-1", "LAP  1", "../../etc/passwd", "", "ß", "…", "x" * 300]
    files = [make_scores(**{field: name or "-"}).file for name in names]
    files += [make_scores(randomised=True).file, make_scores(selection="top-k").file]

    assert len(set(files)) == len(files)
    for file in files:
        assert Path(file).parent == Path("scores")
        assert len(Path(file).name) < 100


def test_changed_or_strange_image_scores_are_refused(tmp_path: Path) -> None:
    found = write_image_scores(tmp_path, make_scores())
    row = make_row("Grad-CAM", 0.3, image_scores=found)
    other = make_row("DeepLIFT", 0.3, image_scores=found)

    with pytest.raises(
        ResultError, match=r"ws-lap, Grad-CAM \(threshold\): no scores by image were recorded"
    ):
        read_image_scores(tmp_path, make_row("Grad-CAM", 0.3))
    with pytest.raises(ResultError, match=r"holds the scores of another row: ws-lap, Grad-CAM \(threshold\)"):
        read_image_scores(tmp_path, other)
    path = tmp_path / found.file
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(
        ResultError, match=r"not the file that the leaderboard was made with: SHA-256 \w{12}… wanted"
    ):
        read_image_scores(tmp_path, row)
    path.unlink()
    with pytest.raises(ResultError, match="there is no such result"):
        read_image_scores(tmp_path, row)


@pytest.mark.parametrize("file", ["../secret.json", "/etc/passwd", "scores/../../x.json", "scores/a/b.json"])
def test_a_row_cannot_point_out_of_its_folder(file: str) -> None:
    with pytest.raises(ValidationError, match="String should match pattern"):
        make_row("Grad-CAM", 0.3, image_scores={"file": file, "checksum": "0" * 64})


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"ids": ("a", "b")}, "'iou' needs one value per image in every seed: [2, 2], found [3, 3]"),
        ({"seeds": (0,)}, "'iou' needs one value per image in every seed: [3], found [3, 3]"),
        ({"ids": ("a", "b", "a")}, "image ids must differ"),
        ({"scores": {"energy": ((1, 1, 1), (1, 1, 1))}}, "scores must hold 'iou' (found energy)"),
    ],
)
def test_image_scores_of_the_wrong_shape_are_refused(fields: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make_scores(**fields)
    assert fault in str(caught.value)


def test_the_schema_names_every_field_and_is_plain_json() -> None:
    schema = json.loads(json.dumps(json_schema()))

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["$defs"]["Row"]["properties"]) == set(Row.model_fields)
    assert schema["$defs"]["Row"]["additionalProperties"] is False
    assert schema["properties"]["schema_version"]["const"] == 1


SCHEMAS = {
    "leaderboard": Leaderboard,
    "image-scores": ImageScores,
    "baseline": Baseline,
    "claims": ClaimResults,
    "golden": GoldenMaps,
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_published_schema_is_the_one_in_force(kind: str) -> None:
    published = files("lapbench.report").joinpath("schemas", f"{kind}-{SCHEMA_VERSION}.json").read_text()
    assert json.loads(published) == json_schema(SCHEMAS[kind]), (
        "a field has changed: write the schema anew, and raise SCHEMA_VERSION if an older reader could "
        "misunderstand a file"
    )


def test_every_published_schema_is_held() -> None:
    published = {path.name for path in files("lapbench.report").joinpath("schemas").iterdir()}
    assert published == {f"{kind}-{SCHEMA_VERSION}.json" for kind in SCHEMAS}


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    row = make_row("Grad-CAM", 0.5).model_copy(update={"n_failed": 3})
    board = Leaderboard(benchmark="x", benchmark_version=1).model_copy(update={"rows": (row,)})
    with pytest.raises(
        ResultError, match=r"leaderboard\.json: 1 fault\n  rows\.1: a complete row has a mean"
    ):
        write_leaderboard(tmp_path / "leaderboard.json", board)
    assert not list(tmp_path.iterdir())
