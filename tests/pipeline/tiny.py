"""The smallest benchmark that has everything: real digits, two trained networks, explainers and controls."""

import re
import tomllib
from pathlib import Path

from lapbench.benchmark import Benchmark, load_benchmark
from lapbench.pipeline import Job, Workspace

MANIFEST = """
name = "few-digits"
version = 1
title = "A few digits"
licence = "CC BY 4.0"
classes = ["absent", "present"]
embedded = true

[reader]
name = "digits"

[reader.parameters]
digit = 3
train = 48
val = 24
test = 30
"""

DEFINITION = """
name = "tiny"
version = 1
title = "Tiny: find the three"

[data]
manifest = "few-digits.toml"
image_size = [32, 32]
channels = 1
mean = [0.5]
std = [0.25]

[[models]]
name = "WS-LAP"
architecture = "resnet18"
parameters = { width = 4, blocks = [1, 1, 1, 1], stem = "3x3", stem_stride = 2, stem_pool = false }

[models.plug]
concepts = [{ name = "three", classes = ["present"], min_area = 0.05, max_area = 0.3, inactive_area = 0.05 }]

[models.recipe]
supervision = "weak"
epochs = 2
iterations = 3
batch_size = 16
learning_rate = 3e-3

[[models]]
name = "plain"
architecture = "resnet18"
parameters = { width = 4, blocks = [1, 1, 1, 1], stem = "3x3", stem_stride = 2, stem_pool = false }

[models.recipe]
epochs = 1
iterations = 3
batch_size = 16
learning_rate = 3e-3

[[explainers]]
name = "lap_all"
[[explainers]]
name = "lap"
label = "LAP 3"
parameters = { layer = 3 }
[[explainers]]
name = "grad_cam"
[[explainers]]
name = "deeplift"
[[explainers]]
name = "random"
[[explainers]]
name = "center"
[[explainers]]
name = "ones"
[[explainers]]
name = "oracle"

[protocol]
target = "present"
resamples = 99
"""


def write_definition(folder: Path, *, name: str = "tiny.toml", text: str = DEFINITION) -> Path:
    """Write the definition and its manifest into a folder; return the definition's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "few-digits.toml").write_text(MANIFEST)
    (folder / name).write_text(text)
    return folder / name


def without_models(text: str, *names: str) -> str:
    """The definition without the tables of these models."""
    for name in names:
        text = re.sub(rf'\[\[models\]\]\nname = "{name}".*?(?=\[\[)', "", text, flags=re.DOTALL)
    return text


def with_explainers(text: str, *tables: str) -> str:
    """The definition with other explainers: each a name, or the lines of its table."""
    start, end = text.index("[[explainers]]"), text.index("[protocol]")
    lines = [t if "=" in t else f'name = "{t}"' for t in tables]
    return text[:start] + "".join(f"[[explainers]]\n{line}\n" for line in lines) + text[end:]


def with_protocol(text: str, **settings: object) -> str:
    """The definition with other settings of the protocol."""
    table = tomllib.loads(text[text.index("[protocol]") :])["protocol"] | settings
    lines = [f"{name} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for name, v in table.items()]
    return text[: text.index("[protocol]")] + "[protocol]\n" + "\n".join(lines) + "\n"


def job(
    path: Path | Benchmark, folder: Path, *, notes: list[str] | None = None, out: str = "out", **options
) -> Job:
    """A job on a definition, with its reports and its cache in a folder."""
    notify = (notes if notes is not None else []).append
    workspace = Workspace(out=folder / out, cache=folder / "cache", notify=notify, **options)
    return Job(path if isinstance(path, Benchmark) else load_benchmark(path), workspace)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, but for the history, which grows with every run."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "runs.jsonl")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}
