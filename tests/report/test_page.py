"""The page: what it holds is what the scores are, whatever the data; and it works in a real browser."""

import base64
import hashlib
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from pipeline import tiny
from typer.testing import CliRunner

from lapbench import pipeline
from lapbench.cli import app
from lapbench.pipeline import page as collecting
from lapbench.report import read_image_scores, read_leaderboard
from lapbench.report.page import (
    Gallery,
    Panel,
    Picture,
    pack,
    render_page,
    serve,
    shrink,
    threshold_grid,
    to_levels,
)
from lapbench.report.page.content import NO_IOU
from lapbench.report.page.document import panel_keys
from lapbench.score import iou_by_threshold, iou_top_k, normalise, predict_mask, upsample
from lapbench.types import Box
from report.examples import make_leaderboard, make_row

CI = (Path(__file__).parents[2] / ".ci" / "run").read_text(encoding="utf-8")
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028<!-- & \u202e\"'"


def random_maps(n=5, side=17, seed=0):
    return np.random.default_rng(seed).standard_normal((n, side, side)).astype(np.float32)


def random_masks(n=5, side=17, seed=1):
    return np.random.default_rng(seed).random((n, side, side)) > 0.7


# ---- levels


@pytest.mark.parametrize("orientation", [1, -1])
def test_levels_say_what_thresholds_say(orientation):
    maps = random_maps() / 3
    grid = threshold_grid(maps, own=0.123456789)
    maps.ravel()[: len(grid)] = grid  # as near to the thresholds as float32 comes, on either side
    levels = to_levels(maps, grid, orientation)

    for k, threshold in enumerate(grid):
        selected = levels > k if orientation > 0 else levels <= k
        assert (selected == predict_mask(maps, threshold, orientation)).all()


@pytest.mark.parametrize("orientation", [1, -1])
def test_the_table_is_the_score_at_every_threshold(orientation):
    maps, masks = random_maps() / 3, random_masks()
    masks[2] = False
    maps[3, 0, 0] = np.nan
    grid = threshold_grid(maps, own=0.2)
    table = collecting._table(maps, masks, grid, orientation)

    slow = [iou_by_threshold(maps, masks, threshold, orientation).iou for threshold in grid]
    np.testing.assert_array_equal(table, np.stack(slow, axis=1))


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 3, 3), np.float32),
        np.ones((2, 3, 3), np.float32),
        np.full((1, 2, 2), np.nan, np.float32),
        -(random_maps() ** 2),
        np.abs(random_maps()) ** 9 / 1e6,
        np.empty((0, 3, 3), np.float32),
    ],
    ids=["zero", "one", "nan", "negative", "heavy tails", "none"],
)
def test_a_grid_ascends_holds_the_own_threshold_and_fits_a_byte(values):
    for own in (None, 0.37, -2.5, 1.0):
        grid = threshold_grid(values, own)

        assert len(grid) <= 255
        assert (np.diff(grid) > 0).all()
        assert own is None or own in grid
        assert grid.max() >= 1.0  # the last threshold selects nothing of a normalised map


def test_where_pixels_crowd_thresholds_do():
    """A gradient's threshold is about 0.02: even steps would leave five of them below it."""
    maps = np.abs(random_maps(n=20)) ** 3
    grid = threshold_grid(maps / maps.max())

    assert (grid < 0.02).sum() > 80


def test_small_maps_keep_pixels_and_blocks_can_be_read_back():
    levels = np.random.default_rng(0).integers(0, 256, (2, 12, 10)).astype(np.uint8)
    small = shrink(levels, (6, 5))
    tables = [np.array([0.0, 1 / 3, 1.0, np.nan]), np.array([0.125])]
    content = zlib.decompress(base64.b64decode(pack(small[0], [small[1]], tables)))
    planes = np.frombuffer(content[:60], np.uint8).reshape(2, 6, 5)
    found = np.frombuffer(content[60:], "<u2")

    np.testing.assert_array_equal(small, levels[:, 1::2, 1::2])
    np.testing.assert_array_equal(planes.cumsum(axis=1, dtype=np.uint8).cumsum(axis=2, dtype=np.uint8), small)
    assert found[3] == NO_IOU
    np.testing.assert_allclose(found[[0, 1, 2, 4]] / (NO_IOU - 1), [0, 1 / 3, 1, 0.125], atol=1e-5)


# ---- the document


def make_panel(row, n=2, **fields):
    grid = np.linspace(0, 1, 11)
    given = {"maps": 0, "grid": grid, "own": 4, "orientation": 1, "scale": None, "curve": 1 - grid}
    return Panel(row=row, **{**given, "iou": np.full(n, 0.25), "top_k": np.full(n, 0.5), **fields})


def make_gallery(*panels, names=("a", "b")):
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) % 12
    block = pack((levels > 6).astype(np.uint8), [levels], [np.linspace(1, 0, 11)] * len(panels))
    jpeg = collecting._jpeg(np.zeros((1, 8, 8), np.float32))
    pictures = tuple(Picture(name, name, (Box(1, 2, 5, 6),), 16, jpeg, block) for name in names)
    return Gallery((8, 8), (8, 8), (np.linspace(0, 1, 11),), panels, pictures, n=len(names))


def hostile_page():
    row = make_row(HOSTILE, 0.3, model=HOSTILE, reason="")
    board = make_leaderboard().model_copy(
        update={"title": HOSTILE, "rows": (row,), "provenance": {HOSTILE: HOSTILE}}
    )
    return render_page(board, make_gallery(make_panel(row), names=(HOSTILE, "plain")))


def test_text_from_outside_stays_text():
    page = hostile_page()

    assert page.count("<script") == 2 + 2 * 2  # data and script, and two for each image
    assert "<img" not in page.replace("\\u003cimg", "")
    assert "\u2028" not in re.search(r'id="data">(.*)</script>', page)[1]


def test_only_the_scripts_and_styles_of_the_page_may_run():
    page = hostile_page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]

    for kind, source in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        digest = base64.b64encode(hashlib.sha256(re.search(source, page, re.S)[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)


def test_the_same_content_gives_the_same_page_and_without_images_there_is_one_too():
    board = make_leaderboard()

    assert render_page(board) == render_page(board)
    assert 'id="viewer"' not in render_page(board)
    assert "0.550" in render_page(board)


def test_every_panel_has_a_word_of_its_own():
    rows = [make_row("LAP 2", 0.3, model=model) for model in ("a b", "a-b", "c")]
    keys = panel_keys([make_panel(row) for row in [*rows, make_row("LAP 2", 0.2, "native", model="c")]])

    assert list(keys.values()) == ["a-b-lap-2"] * 2 + ["a-b-lap-2-2"] * 2 + ["c-lap-2"] * 2 + ["c-lap-2-own"]
    assert panel_keys([make_panel(rows[0])]) == {
        ("a b", "LAP 2", "threshold"): "lap-2",
        ("a b", "LAP 2", "top-k"): "lap-2",
    }


# ---- what is collected


@pytest.fixture(scope="module")
def job(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    definition = tiny.write_definition(folder)
    shutil.copytree(finished.cache, folder / "cache")
    shutil.copytree(finished.out, folder / "out")
    return tiny.job(definition, folder)


@pytest.fixture(scope="module")
def board(job):
    return read_leaderboard(job.workspace.out / "leaderboard.json")


@pytest.fixture(scope="module")
def gallery(job):
    return collecting.collect(job)


@pytest.fixture(scope="module")
def path(job, board):
    return pipeline.write_page(job, board)


def scores_of(job, row):
    scores = read_image_scores(job.workspace.out, row)
    return dict(zip(scores.ids, scores.scores["iou"][0], strict=True))


def test_panels_have_the_scores_of_their_rows(job, board, gallery):
    rows = {row.key: row for row in board.rows}
    ids = [picture.id for picture in gallery.pictures]

    assert len(gallery.panels) > 8
    for panel in gallery.panels:
        row = rows[panel.row.key]
        found = scores_of(job, row)
        top_k = scores_of(job, rows[row.model, row.explainer, "top-k", False])
        if row.threshold is not None and row.complete:
            assert panel.grid[panel.own] == row.threshold
            np.testing.assert_allclose(panel.iou, [found[name] for name in ids], rtol=1e-12)
            np.testing.assert_allclose(panel.curve[panel.own], row.mean, rtol=1e-9)
        np.testing.assert_allclose(panel.top_k, [top_k[name] for name in ids], rtol=1e-12)


def test_what_does_not_fit_the_budget_is_smaller_and_then_fewer(job, gallery, monkeypatch):
    whole = sum(len(picture.block) + len(picture.image) * 4 / 3 for picture in gallery.pictures)
    monkeypatch.setattr(collecting, "SIDES", (16, 8))
    monkeypatch.setattr(collecting, "BUDGET", whole * 0.8)
    smaller = collecting.collect(job)
    monkeypatch.setattr(collecting, "SIDES", (8,))
    monkeypatch.setattr(collecting, "BUDGET", whole / 10)
    fewer = collecting.collect(job)

    assert (gallery.shown, smaller.shown, fewer.shown) == ((32, 32), (16, 16), (8, 8))
    assert len(smaller.pictures) == len(gallery.pictures) == gallery.n
    assert fewer.pictures[:2] != gallery.pictures[:2]
    kept = [picture.id for picture in fewer.pictures]
    step = -(-gallery.n // len(kept))
    assert kept == [picture.id for picture in gallery.pictures][::step]
    for few, all_of_them in zip(fewer.panels, gallery.panels, strict=True):
        np.testing.assert_array_equal(few.iou, all_of_them.iou[::step])
        np.testing.assert_array_equal(few.curve, all_of_them.curve)  # over all images, shown or not


def test_maps_that_have_gone_are_named_and_left_out(job, gallery, tmp_path):
    shutil.copytree(job.workspace.cache, tmp_path / "cache")
    for file in (tmp_path / "cache" / "maps").rglob("grad-cam/test*.h5"):
        file.unlink()
    notes = []
    found = collecting.collect(tiny.job(tiny.write_definition(tmp_path), tmp_path, notes=notes))

    assert {panel.row.explainer for panel in found.panels} == {p.row.explainer for p in gallery.panels} - {
        "Grad-CAM"
    }
    assert "the page shows no maps of Grad-CAM" in notes[0]


def test_without_any_map_there_is_a_page_without_images(tmp_path, board):
    job = tiny.job(tiny.write_definition(tmp_path), tmp_path)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    with pytest.raises(Exception, match="no weights"):
        collecting.collect(job)
    assert 'id="viewer"' not in render_page(board)


# ---- the server and the commands


def test_the_server_shows_one_page_to_this_machine(tmp_path):
    path = tmp_path / "index.html"
    path.write_text("héllo")
    (tmp_path / "secret").write_text("secret")

    def get(address, host=None):
        return urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host} if host else {}))

    with serve(path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.address.startswith("http://127.0.0.1:")
        assert get(server.address).read().decode() == "héllo"
        for address, host in ((f"{server.address}secret", None), (server.address, "evil.example:80")):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(address, host)
        server.shutdown()


def test_the_report_has_a_page_where_it_is_asked_for(job):
    out = job.workspace.out.parent / "again"
    definition = str(job.workspace.out.parent / "tiny.toml")
    command = ["report", definition, "--html", "--out", str(out), "--cache", str(job.workspace.cache)]

    result = CliRunner().invoke(app, command)

    assert result.exit_code in (0, 3), result.output
    assert (out / "index.html").read_text().startswith("<!doctype html>")


def test_view_serves_a_folder_and_opens_it(path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("lapbench.report.page.server.PageServer.serve_forever", lambda _: None)

    result = CliRunner().invoke(app, ["view", str(path.parent)])

    assert result.exit_code == 0, result.output
    assert opened
    assert opened[0] in result.output


# ---- in a browser


def in_ci(tmp_path, **programs):
    """What .ci/run says of the browser where these programs are all that there is."""
    functions = re.search(r"^find_chromium.*?^}\n", CI, re.MULTILINE | re.DOTALL)[0]
    for name, text in programs.items():
        path = tmp_path / name.replace("_", "-")
        path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
        path.chmod(0o755)
    script = f"set -euo pipefail\n{functions}fetch_chromium"
    done = subprocess.run(
        [shutil.which("bash"), "-c", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_ci_has_a_browser_or_says_that_these_tests_are_skipped(tmp_path):
    assert re.search(r"pip install .*\[[\w,]*\bbrowser\b", CI)
    skipped = "no Chromium here, and none was installed: the page's tests in a browser are skipped"
    chromium = f"{tmp_path}/chromium"
    install = f"[ $1 = update ] || {{ echo > '{chromium}'; {shutil.which('chmod')} +x '{chromium}'; }}"

    assert in_ci(tmp_path, id="echo 0") == skipped
    assert in_ci(tmp_path, id="echo 0", apt_get="echo noise; exit 100") == skipped
    assert in_ci(tmp_path, id="echo 1000", apt_get=install) == skipped
    assert in_ci(tmp_path, id="echo 0", apt_get=install) == chromium
    assert in_ci(tmp_path, apt_get="exit 100") == chromium


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a Chromium on the PATH")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Open a page; when the test ends, it has said nothing in the console and asked for nothing."""
    faults, contexts = [], []

    def open_page(path, fragment="", **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("request", lambda r: r.url.startswith(("file:", "data:")) or faults.append(r.url))
        tab.goto(path.as_uri() + fragment)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def tab(show, path):
    tab = show(path)
    settle(tab)
    return tab


def settle(tab):
    """Wait until the image that is asked for is drawn."""
    tab.wait_for_selector(".panel .iou:has-text('.')")
    tab.evaluate(
        "async () => { while (current?.number !== state.image) await new Promise((r) => setTimeout(r, 5)); }"
    )


def shown_rows(tab):
    return [
        e.inner_text() for e in tab.query_selector_all(".board:not([hidden]) tbody tr:not([hidden]) .score b")
    ]


def test_the_leaderboard_sorts_and_filters(tab, board):
    means = [float(text) for text in shown_rows(tab)]
    assert means == sorted(means, reverse=True)

    tab.click(".board:not([hidden]) [data-sort=score] button")
    assert [float(text) for text in shown_rows(tab)] == means[::-1]
    assert tab.get_attribute(".board:not([hidden]) [data-sort=score]", "aria-sort") == "ascending"
    tab.click(".board:not([hidden]) [data-sort=explainer] button")
    names = tab.eval_on_selector_all(
        ".board:not([hidden]) tbody tr", "rows => rows.map((r) => r.dataset.explainer)"
    )
    assert names == sorted(names, key=str.lower)

    tab.fill("[name=query]", "grad-cam ws")
    found = [row for row in board.rows if row.explainer == "Grad-CAM" and row.model == "WS-LAP"]
    wanted = [f"{r.mean:.3f}" for r in found if r.selection == "threshold" and not r.randomised]
    assert shown_rows(tab) == wanted
    assert tab.inner_text("#found").startswith("1 of ")
    tab.fill("[name=query]", "")
    tab.uncheck("[name=controls]")
    assert len(shown_rows(tab)) == len(
        [n for n in names if n not in ("Random", "Centre", "All-ones", "Oracle")]
    )


def test_every_number_of_the_leaderboard_is_the_rows(tab, board):
    for name in ("iou", "pointing_game", "energy"):
        tab.select_option("[name=score]", name)
        for number, selections in enumerate((("threshold", "native"), ("top-k",))):
            tab.check(f"[name=board][value='{number}']", force=True)
            rows = [r for r in board.rows if r.selection in selections and r.complete and not r.randomised]
            estimates = [r.mean if name == "iou" else getattr(r, name).mean for r in rows]
            wanted = sorted((f"{value:.3f}" for value in estimates if value is not None), reverse=True)
            assert [text for text in shown_rows(tab) if text != "–"] == wanted
            beside = [r for r in board.rows if r.selection in selections and r.complete and r.randomised]
            nets = [r.mean if name == "iou" else getattr(r, name).mean for r in beside]
            shown = tab.locator(".board:not([hidden]) tbody td.random").all_inner_texts()
            assert sorted(t for t in shown if t != "–") == sorted(f"{v:.3f}" for v in nets if v is not None)


def test_the_slider_gives_the_scores_of_python(tab, job):
    """Masks and numbers of every panel at many thresholds, against lapbench.score on the stored maps."""
    size = job.benchmark.data.image_size
    (block,) = job.blocks("score")
    samples = {s.id: s for s in (job.dataset[block.split][i] for i in block.indices)}
    raw = {
        (row.model.name if row.model else "no network", row.explainer.row): (
            row,
            job.store.read(*job.map_key(row.sources[0], block)),
        )
        for row in job.rows()
        if not row.randomised
    }
    keys = tab.evaluate("panels.map((panel) => panel.key)")
    compared = 0
    for start in range(0, len(keys), 6):
        chosen = keys[start : start + 6]
        tab.evaluate("(chosen) => update({ chosen, slots: colours(chosen) })", chosen)
        for press in range(3):
            tab.evaluate("(n) => step(n)", press)
            settle(tab)
            found = tab.evaluate(_READ)
            for panel in found:
                row, shard = raw[panel["model"], panel["explainer"]]
                place = shard.ids.index(panel["image"])
                mask, spec = samples[panel["image"]].mask[None], row.sources[0].spec
                maps = shard.maps[place : place + 1]
                normal = normalise(maps, size, mode=spec.upsample)
                shown = upsample(maps, size, spec.upsample) if panel["native"] else normal
                assert panel["topK"]["iou"] == pytest.approx(iou_top_k(normal, mask).iou[0], abs=1e-3)
                for at in panel["at"]:
                    wanted = iou_by_threshold(shown, mask, at["threshold"], panel["orientation"])
                    assert at["iou"] == pytest.approx(wanted.iou[0], abs=1e-3), (panel, at)
                    if not panel["native"]:  # whose levels are those of the normalised maps
                        assert at["selected"] == wanted.selected[0]
                    compared += 1
    assert compared > 400


_READ = """() => chosenPanels().map((panel) => {
    const figure = find(`[data-key="${panel.key}"]`);
    const slider = find("input", figure);
    const read = () => Number(find(".iou", figure).textContent);
    const at = [];
    for (let k = 3; k < panel.grid.length; k += 17) {
        slider.value = k;
        slider.dispatchEvent(new Event("input"));
        const selected = maskOf(panel, current.maps[panel.maps]).reduce((sum, pixel) => sum + pixel, 0);
        at.push({ threshold: panel.grid[k], iou: read(), selected });
    }
    update({ pick: "top-k" });
    drawPanel(panel);
    const topK = { iou: read() };
    update({ pick: "threshold" });
    delete state.cuts[panel.key];
    return {
        model: panel.model, explainer: panel.explainer, native: panel.native, image: images[state.image].id,
        orientation: panel.orientation, at, topK,
    };
})"""


def test_top_k_selects_as_many_pixels_as_the_truth(tab):
    counts = tab.evaluate(
        """() => {
            update({ pick: "top-k" });
            const area = (mask) => mask.reduce((sum, pixel) => sum + pixel, 0);
            const masks = chosenPanels().map((panel) => maskOf(panel, current.maps[panel.maps]));
            return masks.map((mask) => area(mask) - area(current.truth));
        }"""
    )

    assert counts == [0] * len(counts)


def test_images_come_in_the_order_that_is_asked_for(tab, gallery, board):
    keys = panel_keys(gallery.panels)
    chosen = tab.evaluate("state.chosen")
    panels = {keys[p.row.model, p.row.explainer, p.row.selection]: p for p in gallery.panels}
    for pick in ("threshold", "top-k"):
        tab.check(f"[name=pick][value={pick}]", force=True)
        scores = np.stack([panels[key].iou if pick == "threshold" else panels[key].top_k for key in chosen])
        for order, value in (
            ("worst", scores.mean(axis=0)),
            ("best", -scores.mean(axis=0)),
            ("disputed", -np.ptp(scores, axis=0)),
        ):
            tab.check(f"[name=order][value={order}]", force=True)
            settle(tab)
            found = tab.evaluate("ranking")
            np.testing.assert_allclose(value[found], np.sort(value), atol=1e-4)
            assert tab.evaluate("state.image") == found[0]
            assert f"1 of {len(gallery.pictures)}" in tab.inner_text("#where")


def test_keys_move_through_images_and_thresholds(tab):
    first = tab.evaluate("ranking.slice(0, 2)")
    tab.keyboard.press("ArrowRight")
    settle(tab)
    assert tab.evaluate("state.image") == first[1]
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")  # there is none before the first
    settle(tab)
    assert tab.evaluate("state.image") == first[0]

    before = tab.evaluate("chosenPanels().map(cutOf)")
    tab.keyboard.press("]")
    assert tab.evaluate("chosenPanels().map(cutOf)") == [k + 3 for k in before]
    tab.keyboard.press("r")
    assert tab.evaluate("chosenPanels().map(cutOf)") == before
    for key, name, values in (("t", "pick", ("top-k", "threshold")), ("m", "show", ("image", "map"))):
        for value in values:
            tab.keyboard.press(key)
            assert tab.evaluate(f"state.{name}") == value
            assert tab.is_checked(f"[name={name}][value={value}]")

    tab.focus("[name=query]")
    tab.keyboard.press("t")
    assert tab.evaluate("state.pick") == "threshold"  # a letter in a field is a letter
    tab.focus("#panels input[type=range]")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("cutOf(chosenPanels()[0])") == before[0] + 1
    assert tab.evaluate("state.image") == first[0]


def test_the_address_brings_back_what_was_seen(tab, show, path):
    tab.evaluate("choose(state.chosen[1], false)")
    tab.check("[name=order][value=best]", force=True)
    tab.check("[name=show][value=image]", force=True)
    tab.check("[name=board][value='1']", force=True)
    tab.click("#next")
    tab.evaluate("shift(-9)")
    settle(tab)
    tab.wait_for_timeout(300)  # the address follows a little later
    address = tab.evaluate("location.hash")
    other = show(path, address)
    settle(other)

    for what in ("image", "order", "pick", "show", "board", "chosen", "cuts"):
        assert other.evaluate(f"state.{what}") == tab.evaluate(f"state.{what}"), what
    assert other.inner_text("#panels") == tab.inner_text("#panels")


def test_an_address_from_elsewhere_does_no_harm(show, path):
    tab = show(path, "#image=nobody&rows=nothing+%3Cb%3E&at=x:y&order=sideways&board=99&show=%00")
    settle(tab)

    assert tab.evaluate("[state.order, state.show, state.chosen.length > 0]") == ["disputed", "map", True]


def test_rows_are_chosen_up_to_six(tab):
    boxes = ".board:not([hidden]) .choose:not(:checked):not(:disabled)"
    while tab.evaluate("state.chosen.length") < 6:
        tab.locator(boxes).first.check(force=True)
    settle(tab)

    assert tab.locator(boxes).count() == 0
    assert tab.locator("#panels .panel").count() == 1 + 6
    assert sorted(tab.evaluate("Object.values(state.slots)")) == [0, 1, 2, 3, 4, 5]
    tab.locator("#chips button").first.click()
    assert tab.locator("#panels .panel").count() == 1 + 5
    assert tab.locator(boxes).count() > 0


def test_hostile_text_is_shown_and_not_run(show, tmp_path):
    path = tmp_path / "hostile.html"
    path.write_text(hostile_page())
    tab = show(path)
    dialogs = []
    tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    settle(tab)

    assert dialogs == []
    assert tab.locator("img:not(#film img)").count() == 0
    assert "<img src=x onerror=alert(1)>" in tab.inner_text("h1")
    assert "<img src=x onerror=alert(1)>" in tab.inner_text("#where")


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1200),
        ("dark", 390),
        pytest.param("dark", 1200, marks=pytest.mark.slow),
        pytest.param("light", 390, marks=pytest.mark.slow),
    ],
)
def test_everybody_can_use_it(show, path, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`")
    tab = show(path, color_scheme=scheme, viewport={"width": width, "height": 844})
    settle(tab)
    for details in tab.query_selector_all("details"):
        details.evaluate("(element) => (element.open = true)")
    found = axe.Axe().run(tab)

    assert found.response["violations"] == [], found.generate_report()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_button_turns_the_lights(show, path):
    tab = show(path, color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(background)
    tab.click("#theme")
    assert tab.evaluate(background) != light
    assert tab.inner_text("#theme") == "Light"
    tab.click("#theme")
    assert tab.evaluate(background) == light


def test_a_page_without_images_is_a_leaderboard(show, tmp_path):
    path = tmp_path / "board.html"
    path.write_text(render_page(make_leaderboard()))
    tab = show(path)

    assert tab.locator(".board:not([hidden]) tbody tr").count() > 3
    assert tab.locator("#viewer").count() == 0
