import pytest

from lapbench.benchmark import shipped
from lapbench.data import load_manifest
from lapbench.data.paths import find_root, inside
from lapbench.errors import DataError, DefinitionError, UnknownNameError

MINIMAL = """
name = "mine"
version = 1
title = "Mine"
licence = "none"
classes = ["a", "b"]
reader = {name = "class-folders"}
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return load_manifest(path)

    return load


@pytest.mark.parametrize("path", shipped("data_manifests"), ids=lambda p: p.stem)
def test_shipped_manifests_are_valid_and_named_as_their_files(path):
    manifest = load_manifest(path.stem)
    assert manifest.name == path.stem
    assert manifest.licence
    assert manifest.url or manifest.embedded  # what lapbench draws itself is published nowhere else


def test_the_nearest_name_is_offered():
    with pytest.raises(UnknownNameError, match="there is no data manifest 'digit'; did you mean 'digits'"):
        load_manifest("digit")


def test_every_fault_is_listed_at_once_with_its_line(load):
    text = MINIMAL.replace("version = 1", "version = 0").replace('title = "Mine"', 'titel = "Mine"')
    text = text.replace('"class-folders"', '"class-folder"') + '[files]\n"a.csv" = "abc"\n'
    with pytest.raises(DefinitionError) as caught:
        load(text)
    message = str(caught.value)
    for part in (
        "mine.toml:3: version: Input should be greater than 0",
        "mine.toml:4: titel: unknown field; did you mean 'title'?",
        "title: this field is missing",
        "mine.toml:7: reader.name: there is no reader 'class-folder'; did you mean 'class-folders'?",
        "mine.toml:9: files.a.csv: String should match pattern",
    ):
        assert part in message


def test_parameters_of_the_reader_are_checked(load):
    text = MINIMAL.replace(
        '{name = "class-folders"}',
        '{name = "csv-boxes", parameters = {file = "a.csv", convention = "xyxyz", base = 2, id_colum = ""}}',
    )
    with pytest.raises(DefinitionError) as caught:
        load(text)
    message = str(caught.value)
    for part in (
        "reader 'csv-boxes' needs the parameter 'image'",
        "reader 'csv-boxes' has no parameter 'id_colum'; did you mean 'id_column'?",
        "parameter 'convention' of reader 'csv-boxes': Input should be 'xyxy', 'xyxy-inclusive' or 'xywh'",
        "parameter 'base' of reader 'csv-boxes'",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[splits.x]\nshare = [0.5, 0.5]", "share must be two rising numbers"),
        ('[splits.x]\nids = "a.txt"\nseed = 1', "give either ids or source, share and seed, not both"),
        (
            "[splits.x]\nshare = [0.0, 0.5]\n[splits.y]\nshare = [0.4, 1.0]",
            "'x' and 'y' overlap in the same source",
        ),
        ('[splits.x]\n[splits.y]\nsource = "test"', "'x' and 'y' overlap in the same source"),
        ("[splits.x]\nshare = [0.0, 0.5]\n[splits.y]\nshare = [0.5, 1.0]\nseed = 1", "give them one seed"),
        ('embedded = true\nfolder = "x"', "an embedded data set has no folder"),
    ],
)
def test_contradictions_are_refused(load, more, message):
    with pytest.raises(DefinitionError, match=message):
        load(more + MINIMAL if more.startswith("embedded") else MINIMAL + more)


def test_class_names_differ(load):
    with pytest.raises(DefinitionError, match="class names must differ"):
        load(MINIMAL.replace('"b"', '"a"'))


def test_root_in_the_manifest_is_relative_to_it(load, tmp_path):
    manifest = load('root = "pictures"' + MINIMAL)
    (tmp_path / "pictures").mkdir()
    assert find_root(manifest, None) == tmp_path / "pictures"


def test_option_before_environment_before_manifest(load, tmp_path, monkeypatch):
    for name in ("option", "environment", "manifest"):
        (tmp_path / name).mkdir()
    manifest = load('root = "manifest"' + MINIMAL)
    assert find_root(manifest, None) == tmp_path / "manifest"
    monkeypatch.setenv("LAPBENCH_DATA", str(tmp_path / "environment"))
    assert find_root(manifest, None) == tmp_path / "environment"
    assert find_root(manifest, tmp_path / "option") == tmp_path / "option"


def test_a_root_may_hold_the_folder_or_be_it(load, tmp_path):
    manifest = load('folder = "mine"' + MINIMAL)
    assert find_root(manifest, tmp_path) == tmp_path
    (tmp_path / "mine").mkdir()
    assert find_root(manifest, tmp_path) == tmp_path / "mine"


def test_no_root_says_what_to_do(load):
    manifest = load('url = "https://example.org/mine"' + MINIMAL)
    with pytest.raises(DataError) as caught:
        find_root(manifest, None)
    assert str(caught.value) == (
        "data set 'mine' needs files, and no data root is named: give --data DIR, or set LAPBENCH_DATA;"
        " the data set is published at https://example.org/mine"
    )


def test_an_absent_root_says_who_named_it(load, tmp_path, monkeypatch):
    monkeypatch.setenv("LAPBENCH_DATA", str(tmp_path / "none"))
    with pytest.raises(
        DataError, match=r"there is no folder .*none, which the environment variable LAPBENCH_DATA"
    ):
        find_root(load(MINIMAL), None)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "C:\\x", "..\\x", "a\0b"])
def test_paths_stay_inside_the_root(tmp_path, path):
    with pytest.raises(
        DataError, match=r"table:3: the path .* must be relative and stay inside the data root"
    ):
        inside(tmp_path, path, where="table:3")


def test_links_stay_inside_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "own").symlink_to(root)
    assert inside(root, "own/a.png", where="x") == root / "own/a.png"
    with pytest.raises(DataError, match=r"leaves the data root .* through a link"):
        inside(root, "link/a.png", where="x")
