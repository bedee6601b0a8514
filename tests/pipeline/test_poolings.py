"""Which pooling explains itself: LAP and its relatives in one benchmark."""

from lapbench import pipeline
from lapbench.models.weights import load_record
from tests.pipeline import tiny

RELATIVES = "".join(
    f"""[[models]]
name = "{layer}"
architecture = "resnet18"
parameters = {{ width = 4, blocks = [1, 1, 1, 1], stem = "3x3", stem_stride = 2, stem_pool = false }}

[models.plug]
layer = "{layer}"

[models.recipe]
epochs = 1
iterations = 2
batch_size = 16
learning_rate = 3e-3

"""
    for layer in ("lip", "max", "strided")
)


def test_own_maps_are_drawn_by_the_networks_that_make_them(tmp_path):
    text = tiny.DEFINITION.replace("[[explainers]]", RELATIVES + "[[explainers]]", 1)
    text = tiny.without_models(text, "plain")
    text = tiny.with_explainers(text, "lap", "lip", "grad_cam", "deeplift", "ones")
    text = tiny.with_protocol(text, randomised_weights=False)
    job = tiny.job(tiny.write_definition(tmp_path, text=text), tmp_path)
    board = pipeline.run(job)

    own = {(row.model, row.explainer) for row in board.rows if row.explainer in ("LAP", "LIP")}
    assert own == {("WS-LAP", "LAP"), ("lip", "LIP")}
    assert all(row.complete for row in board.rows if not row.control)
    laps = {model.name: len(model.laps) for model in board.models}
    assert laps == {"WS-LAP": 4, "lip": 0, "max": 0, "strided": 0}
    records = [load_record(path) for path in (tmp_path / "cache/weights").glob("*.safetensors")]
    assert {record["plug"].get("layer") for record in records} == {None, "lip", "max", "strided"}
