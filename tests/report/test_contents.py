from pathlib import Path

import pytest
from typer.testing import CliRunner

from lapbench.cli import app
from lapbench.errors import ResultError
from lapbench.report import write_leaderboard
from lapbench.report.page.contents import render_contents
from tests.report.examples import make_leaderboard
from tests.report.test_merge import submit


def test_every_benchmark_with_its_best_rows(tmp_path: Path) -> None:
    write_leaderboard(tmp_path / "digits" / "leaderboard.json", make_leaderboard())
    (tmp_path / "digits" / "index.html").touch()
    submit(tmp_path / "other", "Grad-CAM++")
    page = render_contents(tmp_path)
    assert page.index('href="digits/index.html"') < page.index('href="other/leaderboard.json"')
    assert page.index("0.520") < page.index("0.310") < page.index("0.260")  # its three best by thresholding
    assert "<b>0.110</b>" not in page  # random weights
    assert "Random" in page
    assert "Oracle" not in page
    assert render_contents(tmp_path) == page


def test_text_from_reports_is_escaped(tmp_path: Path) -> None:
    write_leaderboard(tmp_path / "digits" / "leaderboard.json", make_leaderboard())
    page = render_contents(tmp_path)
    assert "<b>pasted</b>" not in page
    assert "&lt;b&gt;pasted&lt;/b&gt;" in page


def test_links_lead_to_folders_of_any_name(tmp_path: Path) -> None:
    write_leaderboard(tmp_path / "run #2 100%" / "leaderboard.json", make_leaderboard())
    assert 'href="run%20%232%20100%25/leaderboard.json"' in render_contents(tmp_path)


@pytest.mark.parametrize(("folder", "fault"), [("repots", "there is no folder"), ("a", "is a report itself")])
def test_a_page_of_contents_is_written_where_reports_are(tmp_path: Path, folder: str, fault: str) -> None:
    write_leaderboard(tmp_path / "a" / "leaderboard.json", make_leaderboard())
    found = CliRunner().invoke(app, ["index", str(tmp_path / folder)])
    assert found.exit_code == 2 and fault in " ".join(found.output.split())
    assert not (tmp_path / folder / "index.html").exists()


def test_a_folder_without_reports_says_so(tmp_path: Path) -> None:
    assert "No report here yet" in render_contents(tmp_path)


def test_a_broken_leaderboard_is_named(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "leaderboard.json").write_text("{")
    with pytest.raises(ResultError, match=r"digits/leaderboard\.json: not valid JSON"):
        render_contents(tmp_path)


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    submit(tmp_path / "ada")
    result = CliRunner().invoke(app, ["index", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "index.html").read_text() == render_contents(tmp_path)
