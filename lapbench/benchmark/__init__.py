"""A benchmark definition: everything that decides a number, validated, and nothing else.

Each class is one table of the TOML file. Defaults are the protocol's own; a field whose comment says ``open``
is a point that the papers leave undetermined, so the choice is a switch and stands in every record.
"""

from lapbench.benchmark.claims import Claim, Term
from lapbench.benchmark.definition import NO_NETWORK, Benchmark, Data, Explainer, Protocol
from lapbench.benchmark.layers import AnteHoc, Bla, Concept, EachClass, Plug
from lapbench.benchmark.loading import given, load_benchmark, select, shipped
from lapbench.benchmark.model import ConceptMLP, Decoder, Model
from lapbench.benchmark.training import Augment, Losses, Recipe

__all__ = [
    "NO_NETWORK", "AnteHoc", "Augment", "Benchmark", "Bla", "Claim", "Concept", "ConceptMLP", "Data",
    "Decoder", "EachClass", "Explainer", "Losses", "Model", "Plug", "Protocol", "Recipe", "Term", "given",
    "load_benchmark", "select", "shipped",
]  # fmt: skip
