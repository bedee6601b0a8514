"""Networks as graphs (torch.fx) of torch's modules and of poolings such as LAP."""

from torch import fx, nn

from lapbench.models.pooling import Pooling


class LayerTracer(fx.Tracer):
    """Traces down to torch's modules and poolings such as LAP, which stay whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole."""
        return isinstance(m, Pooling) or super().is_leaf_module(m, module_qualified_name)
