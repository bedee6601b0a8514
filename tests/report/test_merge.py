import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lapbench.cli import app
from lapbench.errors import ResultError
from lapbench.report import (
    Leaderboard,
    ModelSummary,
    Row,
    read_leaderboard,
    render_markdown,
    write_image_scores,
    write_leaderboard,
    write_report,
)
from lapbench.report.leaderboard import ranked_and_grouped
from lapbench.report.merge import merge, read_submission, write_merged
from lapbench.report.results import ImageScores

IOU = (0.2, 0.4, 0.9)
DATA = {"name": "digits", "version": 1, "digest": "a" * 64}


def submit(
    folder: Path,
    explainer: str = "Grad-CAM",
    iou: tuple[float, ...] = IOU,
    *,
    weights: str = "same",
    version: int = 1,
    data: dict[str, Any] = DATA,
    **fields: Any,
) -> Path:
    """Write a report folder of one row."""
    maps = [{"explainer_version": version, "parameters": {}}]
    row = Row(model="net", explainer=explainer, selection="top-k", mean=float(np.mean(iou)), n=len(iou),
              complete=True, provenance={"maps": maps}).model_copy(update=fields)  # fmt: skip
    images = ImageScores(
        benchmark="example", benchmark_version=1, model="net", explainer=explainer, selection="top-k",
        ids=tuple("abc"[: len(iou)]), scores={"iou": (iou,)},
    )  # fmt: skip
    row = row.model_copy(update={"image_scores": write_image_scores(folder, images)})
    model = ModelSummary(name="net", accuracy=0.9, classes=2, n=3, provenance={"networks": weights})
    board = Leaderboard(benchmark="example", benchmark_version=1, models=(model,), rows=(row,),
                        provenance={"data": data, "versions": {"lapbench": "0.1.0"}})  # fmt: skip
    write_leaderboard(folder / "leaderboard.json", board)
    return folder


def joined(*folders: Path) -> list[Leaderboard]:
    return [one.board for one in merge([read_submission(folder) for folder in folders])]


def test_rows_of_two_submissions_stand_on_one_leaderboard(tmp_path: Path) -> None:
    folders = submit(tmp_path / "ada"), submit(tmp_path / "bo", "DeepLIFT")
    (tmp_path / "bo" / "submission.json").write_text('{"by": "Bo, at night", "note": "two cores"}')
    (merged,) = merge([read_submission(folder) for folder in folders])
    board = write_merged(tmp_path / "both", merged)
    assert [(row.explainer, row.provenance["submitted_by"]) for row in board.rows] == [
        ("DeepLIFT", ["Bo, at night"]),
        ("Grad-CAM", ["ada"]),
    ]
    assert board.provenance["submissions"][1]["note"] == "two cores"
    assert read_submission(tmp_path / "both").board == read_leaderboard(
        tmp_path / "both" / "leaderboard.json"
    )


def test_the_same_row_twice_is_one_row_with_both_names(tmp_path: Path) -> None:
    nearly = tuple(value + 2e-4 for value in IOU)
    (board,) = joined(submit(tmp_path / "ada"), submit(tmp_path / "bo", iou=nearly))
    (row,) = board.rows
    assert row.complete
    assert row.provenance["submitted_by"] == ["ada", "bo"]
    assert [model.name for model in board.models] == ["net"]


@pytest.mark.parametrize(
    ("version", "why"),
    [(1, "for the same maps"), (2, "with other versions or parameters of the explainer")],
)
def test_contradicting_rows_have_no_rank(tmp_path: Path, version: int, why: str) -> None:
    folders = submit(tmp_path / "ada"), submit(tmp_path / "bo", iou=(0.3, 0.4, 0.9), version=version)
    (merged,) = merge([read_submission(folder) for folder in folders])
    (row,) = merged.board.rows
    assert not row.complete
    assert row.reason == f"contradiction: ada and bo say 0.5000 and 0.5333 {why}"
    assert merged.notes == (f"net, Grad-CAM (top-k): ada and bo say 0.5000 and 0.5333 {why}",)


def test_equal_means_of_other_images_are_a_contradiction(tmp_path: Path) -> None:
    (board,) = joined(submit(tmp_path / "ada"), submit(tmp_path / "bo", iou=IOU[::-1]))
    assert not board.rows[0].complete


def test_another_network_of_the_same_name_is_told_apart(tmp_path: Path) -> None:
    (board,) = joined(submit(tmp_path / "ada"), submit(tmp_path / "bo", iou=(0.1, 0.1, 0.1), weights="other"))
    assert [row.model for row in board.rows] == ["net (ada)", "net (bo)"]
    assert [model.name for model in board.models] == ["net (ada)", "net (bo)"]
    assert all(row.complete for row in board.rows)


def test_folders_of_one_name_with_other_networks_are_told_apart(tmp_path: Path) -> None:
    first, second = (
        submit(tmp_path / "0/out"),
        submit(tmp_path / "1/out", iou=(0.1, 0.1, 0.1), weights="other"),
    )
    (board,) = joined(first, second)
    assert [row.model for row in board.rows] == ["net (out 1)", "net (out 2)"]
    assert all(row.complete for row in board.rows)
    (board,) = joined(first, submit(tmp_path / "2/out", "LAP All"))
    assert {row.model for row in board.rows} == {"net"}, "one network, two of whose explainers were run apart"


def test_versions_of_data_are_never_mixed(tmp_path: Path) -> None:
    folders = submit(tmp_path / "ada"), submit(tmp_path / "bo", "DeepLIFT", data={**DATA, "digest": "b" * 64})
    merged = merge([read_submission(folder) for folder in folders])
    assert [[row.explainer for row in one.board.rows] for one in merged] == [["Grad-CAM"], ["DeepLIFT"]]
    assert merged[0].notes == ("example: several versions, data or protocols, kept apart",)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"mean": 0.7}, "net, Grad-CAM (top-k): mean 0.7, that of the scores by image is 0.5"),
        ({"n": 4}, "net, Grad-CAM (top-k): 4 images counted, 3 have a score"),
    ],
)
def test_a_row_that_its_images_do_not_bear_out_is_refused(
    tmp_path: Path, fields: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ResultError) as error:
        read_submission(submit(tmp_path / "ada", **fields))
    assert str(error.value).splitlines() == [f"{tmp_path / 'ada'}: 1 fault", f"  {fault}"]


def test_an_iou_above_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"an IoU lies outside \[0, 1\]"):
        read_submission(submit(tmp_path / "ada", iou=(0.1, 1.2, 0.3)))


def test_a_complete_row_needs_its_images(tmp_path: Path) -> None:
    folder = submit(tmp_path / "ada")
    board = read_leaderboard(folder / "leaderboard.json")
    rows = (board.rows[0].model_copy(update={"image_scores": None}),)
    write_leaderboard(folder / "leaderboard.json", board.model_copy(update={"rows": rows}))
    with pytest.raises(ResultError, match="a complete row needs its scores by image"):
        read_submission(folder)


def test_a_report_without_its_scores_says_so_once_and_what_writes_them(tmp_path: Path) -> None:
    folder = submit(tmp_path / "ada")
    (folder / "scores").rename(tmp_path / "elsewhere")
    with pytest.raises(ResultError) as error:
        read_submission(folder)
    assert str(error.value) == (
        f"{folder}: there is no folder scores, on which 1 of its rows rest: copy it from where the report "
        f"was written, or write it again with `lapbench report NAME --out {folder}`, where NAME is example, "
        "or the TOML file that defines it"
    )


def test_an_interval_that_the_scores_do_not_bear_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"interval \[0.49, 0.51\] of mean, that of the scores by image is"):
        read_submission(submit(tmp_path / "ada", ci_low=0.49, ci_high=0.51))


def test_changed_scores_by_image_are_refused(tmp_path: Path) -> None:
    folder = submit(tmp_path / "ada")
    (file,) = (folder / "scores").iterdir()
    file.write_text(file.read_text().replace("0.9", "0.8"))
    with pytest.raises(ResultError, match="not the file that the leaderboard was made with"):
        read_submission(folder)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"note": "mine"}', "by: this field is missing"),
        ('{"who": "me", "by": "x"}', "who: unknown field"),
        ("[]", "the file: Input should be a valid dictionary or instance of Submitter (found [])"),
        ('{"by": ""}', "by: String should have at least 1 character (found '')"),
        ("{", "not valid JSON: Expecting property name"),
        ("[" * 100_000, "not valid JSON: "),
    ],
)
def test_a_broken_submission_file_is_named_with_its_fault(tmp_path: Path, content: str, fault: str) -> None:
    folder = submit(tmp_path / "ada")
    (folder / "submission.json").write_text(content)
    with pytest.raises(ResultError) as error:
        read_submission(folder)
    wanted = f'{folder}/submission.json: wanted {{"by": "who ran it", "note": "anything"}}: '
    assert str(error.value).startswith(wanted + fault)


def test_what_is_written_again_is_the_same(tmp_path: Path) -> None:
    folders = submit(tmp_path / "ada"), submit(tmp_path / "bo", "DeepLIFT")
    for name in ("one", "two"):
        (merged,) = merge([read_submission(folder) for folder in folders])
        write_merged(tmp_path / name, merged)
    one, two = (tmp_path / name / "leaderboard.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert json.loads(one.read_text())["rows"][0]["rank"] == 1


def rejoin(folder: Path, *parts: Path) -> Leaderboard:
    """Join report folders into one, and return what it then holds."""
    (merged,) = merge([read_submission(part) for part in parts])
    return write_merged(folder, merged)


def test_joining_again_gives_credit_where_it_is_due(tmp_path: Path) -> None:
    ada, bo, cy = submit(tmp_path / "ada"), submit(tmp_path / "bo"), submit(tmp_path / "cy", "DeepLIFT")
    rejoin(tmp_path / "golden", ada, bo)
    board = rejoin(tmp_path / "all", tmp_path / "golden", ada, cy)
    credit = {row.explainer: row.submitted_by for row in board.rows}
    assert credit == {"Grad-CAM": ("ada", "bo"), "DeepLIFT": ("cy",)}
    assert [one["by"] for one in board.provenance["submissions"]] == ["ada", "bo", "cy"]


@pytest.mark.parametrize("part", ["ada", "bo"])
def test_a_contradiction_survives_being_joined_again(tmp_path: Path, part: str) -> None:
    folders = submit(tmp_path / "ada"), submit(tmp_path / "bo", iou=(0.3, 0.4, 0.9))
    (disputed,) = rejoin(tmp_path / "both", *folders).rows
    for order in (("both", part), (part, "both")):
        (merged,) = merge([read_submission(tmp_path / name) for name in order])
        (row,) = merged.board.rows
        assert not row.complete and row.rank is None
        assert row.reason == disputed.reason
        assert set(row.submitted_by) == {"ada", "bo"}
        assert merged.disputed and len(merged.notes) == 1


def test_a_network_that_was_told_apart_is_known_again(tmp_path: Path) -> None:
    ada = submit(tmp_path / "ada")
    rejoin(tmp_path / "both", ada, submit(tmp_path / "bo", iou=(0.1, 0.1, 0.1), weights="other"))
    board = rejoin(tmp_path / "all", ada, tmp_path / "both")
    assert {row.model: row.submitted_by for row in board.rows} == {"net (ada)": ("ada",), "net (bo)": ("bo",)}


# --- the commands


def call(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result


def test_validate_says_what_is_whole_and_what_is_not(tmp_path: Path) -> None:
    whole, broken = submit(tmp_path / "ada"), submit(tmp_path / "bo", mean=0.7)
    result = call("validate", whole, broken, tmp_path / "nobody", code=2)
    assert result.stdout == f"{whole}: ok, 1 rows of example version 1, by ada\n"
    assert f"{broken}: 1 fault" in result.stderr
    assert f"{tmp_path / 'nobody' / 'leaderboard.json'}: there is no such result" in result.stderr


def test_view_says_what_writes_the_page_that_a_folder_has_not(tmp_path: Path) -> None:
    folder, empty = submit(tmp_path / "ada"), tmp_path / "empty"
    empty.mkdir()
    result = call("view", folder, "--no-browser", code=2)
    assert f"{folder}: there is no index.html: write it with `lapbench report NAME --html" in result.stderr
    result = call("view", empty, "--no-browser", code=2)
    assert f"{empty}: neither index.html nor leaderboard.json is there: name a report" in result.stderr


def test_what_is_printed_is_what_would_be_written(tmp_path: Path) -> None:
    """All rows are compared with each other, not each with those of its own submission."""
    folders = [
        submit(tmp_path / name, name, tuple(np.random.default_rng(0).random(3) / 9 + low))
        for name, low in (("a", 0.1), ("b", 0.5), ("c", 0.8))
    ]
    (merged,) = merge([read_submission(folder) for folder in folders])
    printed = ranked_and_grouped(merged.board, merged.images)
    written = write_merged(tmp_path / "out", merged)
    assert [(r.rank, r.group) for r in printed.rows] == [(r.rank, r.group) for r in written.rows]
    assert printed.power == written.power


def test_leaderboard_joins_and_writes(tmp_path: Path) -> None:
    folders = submit(tmp_path / "ada"), submit(tmp_path / "bo", "DeepLIFT", iou=(0.1, 0.2, 0.3))
    result = call("leaderboard", *folders, "--out", tmp_path / "all")
    assert result.stdout.index("Grad-CAM") < result.stdout.index("DeepLIFT")
    assert call("validate", tmp_path / "all" / "example").exit_code == 0


def test_every_face_of_a_joined_board_says_who_ran_a_row(tmp_path: Path) -> None:
    ada, bo = submit(tmp_path / "ada"), submit(tmp_path / "bo")
    cy = submit(tmp_path / "cy", "DeepLIFT", complete=False, reason="stopped early")
    (cy / "submission.json").write_text('{"by": "Cy <b>"}')
    terminal = call("leaderboard", ada, bo, cy, "--out", tmp_path / "all").stdout
    page, markdown = (
        (tmp_path / "all/example" / name).read_text() for name in ("index.html", "leaderboard.md")
    )
    for face in (terminal, page, markdown):
        assert "by ada, bo" in face
    assert "stopped early; by Cy <b>" in terminal
    assert "stopped early; by Cy &lt;b&gt;" in page
    assert r"stopped early; by Cy \<b\>" in markdown
    alone = read_leaderboard(ada / "leaderboard.json")
    assert "by ada" not in render_markdown(alone)


def test_leaderboard_ends_with_1_where_submissions_contradict_each_other(tmp_path: Path) -> None:
    folders = submit(tmp_path / "ada"), submit(tmp_path / "bo", iou=(0.3, 0.4, 0.9))
    result = call("leaderboard", *folders, code=1)
    assert "ada and bo say 0.5000 and 0.5333 for the same maps" in result.stderr


def test_versions_of_data_are_written_apart(tmp_path: Path) -> None:
    folders = submit(tmp_path / "ada"), submit(tmp_path / "bo", data={**DATA, "digest": "b" * 64})
    call("leaderboard", *folders, "--out", tmp_path / "all")
    names = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert len(names) == 2
    assert all(name.startswith("example-") for name in names)


@pytest.mark.parametrize("form", ["csv", "github-action-benchmark", "every-eval-ever"])
def test_export_prints_what_other_tools_read(tmp_path: Path, form: str) -> None:
    printed = call("export", submit(tmp_path / "ada"), "--to", form).stdout
    assert len(printed.splitlines()) == 2 if form == "csv" else len(json.loads(printed)) == 1


def over(folder: Path, digest: str, *means: float) -> Path:
    """Write the report folder of a benchmark of its own, named as the folder: a row for each mean."""
    rows, images = [], {}
    for name, mean in zip("abc", means, strict=True):
        row = Row(model="net", explainer=name, selection="top-k", mean=mean, n=2, complete=True)
        rows.append(row)
        images[row.key] = ImageScores(
            benchmark=folder.name, benchmark_version=1, model="net", explainer=name, selection="top-k",
            ids=("i", "j"), scores={"iou": ((mean, mean),)},
        )  # fmt: skip
    board = Leaderboard(benchmark=folder.name, benchmark_version=1, rows=tuple(rows),
                        provenance={"data": {"digest": digest * 64}})  # fmt: skip
    write_report(folder, board, images)
    return folder


def test_ranks_over_several_data_sets_are_printed_and_written(tmp_path: Path) -> None:
    one, two = over(tmp_path / "one", "a", 0.9, 0.5, 0.1), over(tmp_path / "two", "b", 0.8, 0.7, 0.6)
    printed = call("leaderboard", one, two, "--out", tmp_path / "all").stdout
    written = (tmp_path / "all/ranks.md").read_text()
    assert "Mean rank over 2 data sets" in written
    assert "| 1.00 | 1 | net, a |" in written
    assert written.removeprefix("# Ranks over data sets\n\n") in printed
    call("leaderboard", one, "--out", tmp_path / "all")
    assert not (tmp_path / "all/ranks.md").exists(), "ranks of an earlier join"


def test_two_benchmarks_over_the_same_data_are_not_two_data_sets(tmp_path: Path) -> None:
    folders = over(tmp_path / "one", "a", 0.9, 0.5, 0.1), over(tmp_path / "two", "a", 0.8, 0.7, 0.6)
    result = call("leaderboard", *folders)
    assert "Mean rank" not in result.stdout
    said = "not ranked over data sets: several are over the data of one, two; give one of them"
    assert said in " ".join(result.stderr.split())
