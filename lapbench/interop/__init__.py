"""Bridges to other libraries of explainers and metrics: Quantus, pytorch-grad-cam and zennit.

None of them is needed by lapbench, and each is imported only when its bridge is crossed:
``pip install 'lapbench[interop]'`` brings all three. What comes over a bridge is an explainer like any other:
`lapbench.check_explainer` tells whether it keeps the contract, and `lapbench.explainer` registers it.
"""

from lapbench.interop.grad_cam import from_grad_cam
from lapbench.interop.quantus import QuantusScores, quantus_explain_func, quantus_scores
from lapbench.interop.zennit import from_zennit

__all__ = ["QuantusScores", "from_grad_cam", "from_zennit", "quantus_explain_func", "quantus_scores"]
