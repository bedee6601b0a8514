"""Networks as graphs (torch.fx) of torch's modules and of lapbench's poolings."""

from torch import fx, nn

from lapbench.models.heat_maps import HeatMaps
from lapbench.models.pooling import Pooling


class LayerTracer(fx.Tracer):
    """Traces down to torch's modules, poolings such as LAP, and heat maps, which stay whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole."""
        return isinstance(m, Pooling | HeatMaps) or super().is_leaf_module(m, module_qualified_name)
