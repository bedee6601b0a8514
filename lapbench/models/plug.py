"""Put LAP into a network: poolings become LAP, strided convolutions lose their stride to a LAP behind them.

The rule and the places are those of the LAP paper (arXiv 2201.11808). Its relatives, which `Plug.layer`
names, take the same places with the same windows. BLA (arXiv 2105.14824), or ante-hoc maps (reconstruction),
take the place of the global pooling alone. The network with any of them is a copy; every parameter of the
plain network keeps its name, so plain weights load into it (`load_plain`).
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d as GoogLeNetConv2d
from torchvision.models.inception import BasicConv2d, InceptionB, InceptionD
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.misc import SqueezeExcitation

from lapbench.benchmark import AnteHoc, Bla, Plug
from lapbench.errors import DefinitionError, UnknownNameError
from lapbench.models import blocks
from lapbench.models.bla import BLA, SubsetAttention
from lapbench.models.heat_maps import HeatMaps
from lapbench.models.lap import LAP, AdaptiveLAP2d, ConceptScoring, LAP2d
from lapbench.models.lip import LIP, ChannelScoring
from lapbench.models.pooling import Pair, Pooling, Strided, Window, as_pair
from lapbench.models.predict import evaluating
from lapbench.models.weighting import AnteHocPool, antehoc_layers
from lapbench.models.weights import copy_weights

STEM_STRIDE = 4
"""With sites ``paper``, single layers that reduce the image up to this factor belong to the stem and stay."""

GLOBAL_POOL = "global_pool"
"""The site of a global pooling that is a function call rather than a module."""

_PROBE_SIZES = (
    299,
    224,
    128,
    64,
    32,
    28,
)  # of the image that shapes are asked with; some networks take one only
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_NEVER_STEM = (BasicBlock, Bottleneck, InceptionB, InceptionD, *_ADAPTIVE)
_ADDED = (Pooling, AnteHocPool)
_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Site:
    """A place where a network reduces its maps, by the name of the module in the plain network.

    channels_in, channels_out: of the plain module. in_paper: chosen by sites ``paper``. calls: how often a
    pass through the network runs the module; LAP can stand in for one that runs once.
    """

    name: str
    channels_in: int
    channels_out: int
    in_paper: bool
    calls: int = 1


def plug(model: nn.Module, spec: Plug, *, classes: Sequence[str]) -> nn.Module:
    """Return a copy of the network with LAP at the sites of the definition; the given network is untouched.

    Its relatives: ``max``, ``average``, ``lip`` stand wherever LAP would. ``strided`` leaves convolutions
    their stride, which is all that the layer does there, and global poolings as they are; at other poolings
    it passes the first pixel of each window that lies on the map.

    classes: the data's class names, among which the concepts of the definition look up theirs.
    Errors: DefinitionError for a network without sites, or one that carries LAP already; UnknownNameError for
    a site or class that does not exist.
    """
    _check_plain(model)
    spec = spec.of(classes)
    heads = tuple(tuple(_index(name, classes) for name in concept.classes) for concept in spec.concepts)
    plugged = copy.deepcopy(model)
    own = set(plugged.modules())
    for site in choose_sites(find_sites(plugged), spec.sites):
        if site.calls > 1:
            raise DefinitionError(
                f"{type(model).__name__} runs its module {site.name!r} {site.calls} times: give each place a "
                "module of its own, or leave it out of sites"
            )
        _install(plugged, site, spec)
    weight = next(model.parameters())
    for module in set(plugged.modules()) - own:
        module.to(weight.device, weight.dtype).train(model.training)
    vars(plugged).update(lap_heads=heads, lap_names=tuple(concept.name for concept in spec.concepts))
    return plugged


def put_bla(model: nn.Module, spec: Bla) -> nn.Module:
    """Return a copy of the network whose global pooling is BLA; the given network is untouched.

    SqueezeNet pools the maps of its classes, which are then what BLA scores and pools.
    Errors: DefinitionError for a network without a global pooling, or one that carries such a layer already.
    """
    attention = SubsetAttention(**{name: value for name, value in spec if name != "preset"})
    wanted = "global pooling to 1×1, a module nn.AdaptiveAvgPool2d(1)"
    return _pooled_by(model, "bla", lambda channels, _pool: BLA(channels, attention), _is_global, wanted)


def put_antehoc(model: nn.Module, spec: AnteHoc) -> nn.Module:
    """Return a copy of the network with ante-hoc maps (reconstruction); the given network is untouched.

    Its answers are those of the given network: a weighting network stands beside the global pooling.
    SqueezeNet pools the maps of its classes, which are then what is weighted. The pooling may be to any
    size, or by heat maps.
    Errors: DefinitionError for a network without such a pooling, or one that carries such a layer already.
    """
    wanted = "global pooling to a fixed size, a module nn.AdaptiveAvgPool2d"
    return _pooled_by(
        model, "antehoc", lambda channels, pool: AnteHocPool(channels, pool, spec), _is_end, wanted
    )


def _pooled_by(
    model: nn.Module,
    child: str,
    make: Callable[[int, nn.Module], nn.Module],
    takes: Callable[[nn.Module], bool],
    wanted: str,
) -> nn.Module:
    """Return a copy of the network whose last pooling is what is made of its channels and of itself.

    takes, wanted: which poolings will do, and how to call them.
    """
    _check_plain(model)
    changed, weight = copy.deepcopy(model), next(model.parameters())
    name, channels = _last_pool(changed, takes, wanted)
    pool = nn.AdaptiveAvgPool2d(1) if name == GLOBAL_POOL else changed.get_submodule(name)
    layer = make(channels, pool).to(weight.device, weight.dtype).train(model.training)
    _put(changed, name, layer, child)
    return changed


def _check_plain(model: nn.Module) -> None:
    if is_plugged(model):
        raise DefinitionError(
            f"this {type(model).__name__} carries LAP, or what stands in its place, already: "
            "start from the plain network instead"
        )


def is_plugged(model: nn.Module) -> bool:
    """Whether the network carries LAP, BLA or a weighting network, or was plugged with a relative."""
    return any(isinstance(module, _ADDED) or "lap_names" in vars(module) for module in model.modules())


def lap_layers(model: nn.Module) -> dict[str, LAP]:
    """The network's LAPs by name, in the order in which it holds them: layers are counted as they run."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LAP)}


def lip_layers(model: nn.Module) -> dict[str, LIP]:
    """The network's LIPs by name, in the order in which it holds them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LIP)}


def is_added(model: nn.Module, key: str) -> bool:
    """Whether an entry of the network's state, by its name, is one that the plain network has not."""
    added = (name for name, module in model.named_modules() if isinstance(module, _ADDED))
    own = tuple(f"{name}.pool." for name in antehoc_layers(model))  # the pooling as it was
    return key.startswith(tuple(f"{name}." for name in added)) and not key.startswith(own)


def moved(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a plain network's weights under the names that they have in one with further layers.

    Only a pooling that learns (heat maps) has another one, behind ante-hoc maps: they keep it as a child.
    """
    own, names = model.state_dict(), {key: key for key in state}
    for name in antehoc_layers(model):
        inner = {
            key: key.replace(f"{name}.", f"{name}.pool.", 1) for key in state if key.startswith(f"{name}.")
        }
        names |= {key: new for key, new in inner.items() if key not in own and new in own}
    return {names[key]: tensor for key, tensor in state.items()}


def _last_pool(model: nn.Module, takes: Callable[[nn.Module], bool], wanted: str) -> tuple[str, int]:
    """The name of a network's last pooling of those that will do, and its channels; wanted: what they are."""
    if type(model) in blocks.GLOBAL_POOL:
        return GLOBAL_POOL, _head_channels(model)
    pools = dict(_candidates(model, takes))
    if not pools:
        raise DefinitionError(
            f"{type(model).__name__} has no {wanted}: choose another architecture, or give it one"
        )
    name, shape, *_ = _probe(model, pools)[1][-1]
    return name, shape[1]


def lap_heads(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    """For each concept head, the classes in which the concept is present; () marks a common head."""
    return cast(tuple[tuple[int, ...], ...], vars(model).get("lap_heads", ()))


def lap_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the concept heads."""
    return cast(tuple[str, ...], vars(model).get("lap_names", ()))


def load_plain(model: nn.Module, state: Mapping[str, Tensor], *, source: str = "the given weights") -> None:
    """Load the weights of a plain network into one with further layers, which stay as they are.

    Errors: WeightsError that names missing, unexpected and mis-shaped entries; nothing is loaded then.
    """
    copy_weights(model, moved(model, state), source=source, optional=lambda key: is_added(model, key))


def find_sites(model: nn.Module) -> list[Site]:
    """All sites of a network, in the order in which they run.

    Sites are blocks with a strided convolution in two branches (ResNet, Inception V3), and elsewhere poolings
    and convolutions with a stride, and poolings to 1×1. Pooling that is not part of the main stream
    (squeeze-and-excitation), or that gives a fixed size other than 1×1 (VGG, AlexNet), is none.
    """
    modules = dict(_candidates(model, _is_site))
    size, shapes = _probe(model, modules)
    sites = []
    for name, shape_in, shape_out, calls in shapes:
        reduced = 2 ** round(math.log2(size / shape_in[2]))
        late = isinstance(modules[name], _NEVER_STEM) or reduced >= STEM_STRIDE
        sites.append(Site(name, shape_in[1], shape_out[1], late, calls))
    if (kind := type(model)) in blocks.GLOBAL_POOL:
        channels = _head_channels(model)
        sites.append(Site(GLOBAL_POOL, channels, channels, in_paper=True))
    if not sites:
        raise DefinitionError(
            f"{kind.__name__} has no place for LAP: no pooling layer and no strided convolution was found"
        )
    return sites


def choose_sites(sites: Sequence[Site], wanted: Sequence[str]) -> list[Site]:
    """The sites that a definition asks for: ``all``, ``paper``, or names; a container names all within it.

    Errors: UnknownNameError with the nearest right name.
    """
    names = [site.name for site in sites]
    if wanted == "all":
        return list(sites)
    if wanted == "paper":
        chosen = [site for site in sites if site.in_paper]
    else:
        for name in wanted:
            if not any(_within(site, name) for site in names):
                raise UnknownNameError("LAP site", name, names)
        chosen = [site for site in sites if any(_within(site.name, name) for name in wanted)]
    if not chosen:
        raise DefinitionError(f"sites = {wanted!r} chooses no place for LAP: choose among {', '.join(names)}")
    return chosen


def _head_channels(model: nn.Module) -> int:
    """The channels of what a network's global pooling gives to its head."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1].in_features


def _within(site: str, name: str) -> bool:
    return site == name or site.startswith(f"{name}.")


def _index(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise UnknownNameError("class", name, classes)
    return list(classes).index(name)


def _candidates(
    model: nn.Module, takes: Callable[[nn.Module], bool], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in model.named_children():
        if takes(child):
            yield prefix + name, child
        elif not isinstance(child, SqueezeExcitation):
            yield from _candidates(child, takes, f"{prefix}{name}.")


def _is_site(module: nn.Module) -> bool:
    match module:
        case BasicBlock() | Bottleneck():
            return bool(module.stride != 1)
        case InceptionB() | InceptionD():
            return True
        case nn.Conv2d() | nn.MaxPool2d() | nn.AvgPool2d():
            return max(as_pair(cast(Pair, module.stride))) > 1
    return _is_global(module)


def _is_global(module: nn.Module) -> bool:
    return isinstance(module, _ADAPTIVE) and module.output_size in (1, (1, 1))


def _is_end(module: nn.Module) -> bool:
    """Whether a network may end in it: a pooling to a fixed size, or heat maps."""
    return isinstance(module, (*_ADAPTIVE, HeatMaps))


def _probe(
    model: nn.Module, modules: Mapping[str, nn.Module]
) -> tuple[int, list[tuple[str, torch.Size, torch.Size, int]]]:
    """The side of an image, and in order the modules that it passes: shapes before and after, and calls.

    Nothing is computed: the tensors have shapes only.
    """
    seen: dict[str, tuple[str, torch.Size, torch.Size, int]] = {}

    def see(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, args: Any, out: Tensor) -> None:
            calls = 1 + (seen[name][-1] if name in seen else 0)
            seen[name] = name, args[0].shape, out.shape, calls

        return hook

    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.detach().to("meta", torch.float32) for name, tensor in tensors.items()}
    handles = [module.register_forward_hook(see(name)) for name, module in modules.items()]
    try:
        with evaluating(model), torch.no_grad():
            for size in _PROBE_SIZES:
                seen.clear()
                try:
                    torch.func.functional_call(
                        model, shapes, (torch.empty(1, channels, size, size, device="meta"),)
                    )
                except (RuntimeError, ValueError) as error:
                    reason = str(error).partition("\n")[0]
                else:
                    return size, list(seen.values())
    finally:
        for handle in handles:
            handle.remove()
    raise DefinitionError(
        f"{type(model).__name__} takes images of none of the sizes {', '.join(map(str, _PROBE_SIZES))}, "
        f"so the places for LAP cannot be found ({reason})"
    )


def _install(model: nn.Module, site: Site, spec: Plug) -> None:
    """Put LAP at one site, by the kind of module that is there."""
    path, _, child = site.name.rpartition(".")
    module = None if site.name == GLOBAL_POOL else model.get_submodule(site.name)
    if spec.layer == "strided" and not isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return
    if module is None or isinstance(module, _ADAPTIVE):
        _put(model, site.name, _adaptive(site.channels_in, spec), "lap")
        return
    parent = model.get_submodule(path)
    match module:
        case BasicBlock() | Bottleneck():
            _install_in_block(module, spec)
        case InceptionB() | InceptionD():
            _install_in_mixed(module, site, spec)
        case nn.Conv2d():
            _install_after(parent, child, module, spec)
        case nn.MaxPool2d() | nn.AvgPool2d():
            setattr(parent, child, _like_pool(module, site, spec))


def _put(model: nn.Module, name: str, layer: nn.Module, child: str) -> None:
    """Put a layer in the place of a pooling; of one that is a function call, as a child of the network."""
    if name == GLOBAL_POOL:
        blocks.become(model, blocks.GLOBAL_POOL[type(model)], **{child: layer}, pooled_by=child)
    else:
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, layer)


def _install_in_block(block: Any, spec: Plug) -> None:
    """LAP in the first block of a ResNet stage, by `branch_mode`."""
    basic = isinstance(block, BasicBlock)
    strided = block.conv1 if basic else block.conv2
    stride = strided.stride
    strided.stride = block.downsample[0].stride = (1, 1)
    main, skip = strided.out_channels, block.downsample[0].out_channels
    if spec.branch_mode == "post_add":
        if basic:  # conv2 keeps its neighbours at their old distance
            block.conv2.dilation = block.conv2.padding = stride
        kind = blocks.PostAddBasicBlock if basic else blocks.PostAddBottleneck
        blocks.become(block, kind, lap=_tiles(skip, stride, spec))
        return
    separate = spec.branch_mode == "separate"
    scored = main + skip if spec.branch_scores == "concat" and not separate else main
    blocks.become(
        block,
        blocks.LapBasicBlock if basic else blocks.LapBottleneck,
        lap=_tiles(scored, stride, spec),
        lap_skip=_tiles(skip, stride, spec) if separate else None,
        lap_position=spec.lap_position,
        branch_scores=spec.branch_scores,
    )


def _install_in_mixed(block: Any, site: Site, spec: Plug) -> None:
    """LAP in a reduction block of Inception V3, by `mixed_mode`."""
    kind = blocks.LapInceptionB if isinstance(block, InceptionB) else blocks.LapInceptionD
    convolutions = [getattr(block, name) for name in kind.strided]
    if spec.mixed_mode == "concat":
        for convolution in convolutions:
            convolution.conv.stride = (1, 1)
        blocks.become(block, kind, lap=_tiles(site.channels_out, (2, 2), spec), lap_pool=None)
    else:
        for convolution in convolutions:
            _install_after(convolution, "conv", convolution.conv, spec)
        pool = nn.MaxPool2d(3, 2)
        blocks.become(block, kind, lap=None, lap_pool=_like_pool(pool, site, spec))


def _install_after(parent: nn.Module, child: str, convolution: nn.Conv2d, spec: Plug) -> None:
    """LAP behind a convolution, which loses its stride: directly, or behind its norm and activation."""
    lap = _tiles(convolution.out_channels, cast(tuple[int, int], convolution.stride), spec)
    convolution.stride = (1, 1)
    directly = spec.lap_position == "pre_norm"
    match parent:
        case nn.Sequential() if type(parent).forward is nn.Sequential.forward:
            _insert(parent, child if directly else _last_of_unit(parent, child), lap)
        case _ if directly:
            blocks.become(convolution, blocks.LapConv2d, lap=lap)
        case BasicConv2d() | GoogLeNetConv2d():
            blocks.become(parent, blocks.LapBasicConv2d, lap=lap)
        case ResNet():  # the stem: conv1, bn1, relu
            parent.relu = nn.Sequential(parent.relu, lap)
        case _:
            raise DefinitionError(
                f"lap_position 'post_act' needs to know what follows the convolution {child!r} in "
                f"{type(parent).__name__}: use 'pre_norm', or leave this site out"
            )


def _insert(sequence: nn.Sequential, after: str, lap: nn.Module) -> None:
    """Put LAP into a sequence, behind a layer; the other layers keep their names."""
    layers = list(sequence._modules.items())
    sequence._modules.clear()
    for name, layer in layers:
        sequence.add_module(name, layer)
        if name == after:
            sequence.add_module(f"{name}_lap", lap)


def _last_of_unit(sequence: nn.Sequential, name: str) -> str:
    """The last layer of the convolution's unit: itself, its norm if one follows, its activation likewise."""
    layers = list(sequence.named_children())
    position = [key for key, _ in layers].index(name)
    last = name
    for key, layer in layers[position + 1 :]:
        if not (isinstance(layer, _NORMS) or type(layer).__module__ == nn.ReLU.__module__):
            break
        last = key
    return last


def _tiles(channels: int, stride: tuple[int, int], spec: Plug) -> nn.Module:
    """The layer that takes over a convolution's stride."""
    return _layer(channels, Window(stride, stride), spec)


def _like_pool(pool: nn.MaxPool2d | nn.AvgPool2d, site: Site, spec: Plug) -> nn.Module:
    """The layer with the pooling's own geometry, its rounding included: all later maps keep their sizes."""
    if as_pair(getattr(pool, "dilation", 1)) != (1, 1):
        raise DefinitionError(
            f"the pooling {site.name!r} is dilated, which LAP cannot be: leave this site out"
        )
    sizes = as_pair(pool.kernel_size), as_pair(pool.stride), as_pair(pool.padding)
    return _layer(site.channels_in, Window(*sizes, pool.ceil_mode), spec)


def _layer(channels: int, window: Window, spec: Plug) -> nn.Module:
    """The layer of the definition with a sliding window."""
    kernel, stride, padding, ceil_mode = window.kernel, window.stride, window.padding, window.ceil_mode
    match spec.layer:
        case "lap":
            options = _normaliser(spec)
            return LAP2d(
                _scoring(channels, spec), kernel, stride, padding=padding, ceil_mode=ceil_mode, **options
            )
        case "lip":
            return LIP(_scoring(channels, spec), window)
        case "average":
            return nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad=False)
        case "max":
            return nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
        case "strided":
            return Strided(window)


def _adaptive(channels: int, spec: Plug) -> nn.Module:
    """The layer of the definition whose window is the whole map."""
    match spec.layer:
        case "lap":
            return AdaptiveLAP2d(_scoring(channels, spec), **_normaliser(spec))
        case "lip":
            return LIP(_scoring(channels, spec), None)
        case "max":
            return nn.AdaptiveMaxPool2d(1)
        case _:
            return nn.AdaptiveAvgPool2d(1)


def _scoring(channels: int, spec: Plug) -> ConceptScoring:
    """A LAP's scoring module; for LIP one with a single head, or its own with one a channel."""
    if spec.channels == "each":
        return ChannelScoring(
            channels, hidden=spec.hidden, activation=spec.score_activation, init=spec.score_init
        )
    return ConceptScoring(
        channels,
        len(spec.concepts) or 1,
        hidden=spec.hidden,
        activation=spec.score_activation,
        init=spec.score_init,
        aggregation=spec.aggregation,
        positive=spec.aggregate_positive,
    )


def _normaliser(spec: Plug) -> dict[str, Any]:
    return {"eps": spec.eps, "alpha_init": spec.alpha_init, "alpha_trainable": spec.alpha_trainable}
