import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from explain.networks import images, network, plugged, small_resnet
from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain import explain, untouched
from lapbench.explain.passes import passes_of
from lapbench.explain.relevance_cam import relevance_cam, relevance_cam_rules
from lapbench.explain.tape import Operation
from lapbench.models.zoo import build
from lapbench.registry import explainers

TARGET = torch.tensor([0, 1, 3])


def maps(model: nn.Module, batch: Tensor, target: Tensor = TARGET, **parameters: object) -> Tensor:
    return explain(explainers.get("relevance_cam"), model, batch, target, parameters).values


def exact(model: nn.Module, batch: Tensor, **parameters: object) -> Tensor:
    """The maps in float64."""
    with untouched(model):
        return relevance_cam(model, batch, TARGET, **parameters)  # type: ignore[arg-type]


# --- a slow second implementation for ResNets of BasicBlocks: one image, matrices written out


def ratio(r: Tensor, z: Tensor) -> Tensor:
    return torch.where(z == 0, torch.zeros_like(z), r / z)


def through_matrix(x: Tensor, weight: Tensor, bias: float | Tensor, r: Tensor) -> Tensor:
    """R_in of z = W x for the matrix W (out, in), with the bias counted in both halves."""
    parts = x * weight
    z = (parts * ((x > 0) & (weight > 0))).sum(1) + (parts * ((x < 0) & (weight < 0))).sum(1) + 2 * bias
    kept = parts * (((x > 0) & (weight > 0)) | ((x < 0) & (weight < 0)))
    return (kept * ratio(r, z)[:, None]).sum(0)


def through_convolution(convolution: nn.Conv2d, x: Tensor, r: Tensor) -> Tensor:
    unit = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    columns = F.conv2d(unit, convolution.weight, None, convolution.stride, convolution.padding)
    matrix = columns.flatten(1).T
    bias = 0 if convolution.bias is None else convolution.bias.repeat_interleave(r[0].numel())
    return through_matrix(x.flatten(), matrix, bias, r.flatten()).view_as(x)


def through_block(block: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    first = block.bn1(block.conv1(x[None])).relu()
    main = block.bn2(block.conv2(first))[0]
    skip = x if block.downsample is None else block.downsample(x[None])[0]
    r_main, r_skip = main * ratio(r, main + skip), skip * ratio(r, main + skip)
    if block.downsample is not None:
        r_skip = through_convolution(block.downsample[0], x, r_skip)
    return through_convolution(block.conv1, x, through_convolution(block.conv2, first[0], r_main)) + r_skip


@torch.no_grad()
def slow_relevance_cam(model: nn.Module, layer: int, image: Tensor, target: int, start: str) -> Tensor:
    features = [model.maxpool(model.relu(model.bn1(model.conv1(image[None]))))]
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        features.append(stage(features[-1]))
    pooled = features[4].mean((2, 3))[0]
    logits = model.fc(pooled)
    n = len(logits)
    r = torch.full_like(logits, -1 / n) if start == "constant" else -logits / (n - 1)
    r[target] = 1 if start == "constant" else logits[target]
    r = through_matrix(pooled, model.fc.weight, 0.0, r)
    last = features[4][0].clamp_min(0)
    r = last * ratio(r, last.sum((1, 2)))[:, None, None]
    for number in range(4, layer, -1):
        stage, x = getattr(model, f"layer{number}"), features[number - 1]
        inputs = [x]
        for block in stage[:-1]:
            inputs.append(block(inputs[-1]))
        for block, entry in zip(reversed(stage), reversed(inputs), strict=True):
            r = through_block(block, entry[0], r)
    return (r.mean((1, 2), keepdim=True) * features[layer][0]).sum(0)


@pytest.mark.parametrize("layer", [4, 3, 2, 1])
@pytest.mark.parametrize("start", ["constant", "logit"])
def test_against_a_slow_second_implementation(layer: int, start: str) -> None:
    torch.manual_seed(0)
    parameters = {"width": 4, "blocks": (1, 1, 2, 2), "stem": "3x3"}
    model = build("resnet18", num_classes=4, parameters=parameters)
    from explain.networks import unsettled

    model = unsettled(model, side=64).double()
    batch = images().double()
    expected = [
        slow_relevance_cam(model, layer, x, int(t), start) for x, t in zip(batch, TARGET, strict=True)
    ]
    found = exact(model, batch, layer=f"layer{layer}", start=start)
    torch.testing.assert_close(found.detach(), torch.stack(expected), rtol=1e-9, atol=1e-12)


# --- every operation by a closed form


def by_hand(model: nn.Module, batch: Tensor, relevance: Tensor, layer: str) -> Tensor:
    """The relevance that arrives at a layer's output, given that of the network's output."""
    return passes_of(model, batch, TARGET).relevance(relevance, relevance_cam_rules(), layer)


class Then(nn.Module):
    """An identity with a name, and what comes after it."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.here, self.after = nn.Identity(), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.here(x))


def test_max_pooling_gives_all_to_the_winner() -> None:
    x = torch.tensor([[[[1.0, 3.0, 2.0, -4.0]]]])
    found = by_hand(Then(nn.MaxPool2d((1, 2))), x, torch.tensor([[[[5.0, 7.0]]]]), "here")
    torch.testing.assert_close(found, torch.tensor([[[[0.0, 5.0, 7.0, 0.0]]]]))


def test_average_pooling_is_in_proportion_to_x() -> None:
    x = torch.tensor([[[[1.0, 3.0, 6.0, -4.0]]]])
    found = by_hand(Then(nn.AvgPool2d((1, 2))), x, torch.tensor([[[[4.0, 2.0]]]]), "here")
    torch.testing.assert_close(found, torch.tensor([[[[1.0, 3.0, 6.0, -4.0]]]]))


def test_adaptive_pooling_is_in_proportion_to_the_positive_part() -> None:
    x = torch.tensor([[[[1.0, 3.0], [-2.0, 0.0]]]])
    found = by_hand(Then(nn.AdaptiveAvgPool2d(1)), x, torch.tensor([[[[8.0]]]]), "here")
    torch.testing.assert_close(found, torch.tensor([[[[2.0, 6.0], [0.0, 0.0]]]]))


def test_a_convolution_counts_its_bias_in_both_halves() -> None:
    convolution = nn.Conv2d(2, 1, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([3.0, -2.0]).view(1, 2, 1, 1))
        convolution.bias.fill_(0.5)
    x = torch.tensor([[2.0, -1.0]]).view(1, 2, 1, 1)  # Z = 6 + 2 + 2·0.5 = 9
    found = by_hand(Then(convolution), x, torch.tensor([[[[9.0]]]]), "here")
    torch.testing.assert_close(found.flatten(), torch.tensor([6.0, 2.0]))


def test_splitting_undoes_concatenation() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.cat([x, x.relu()], 1).split([1, 1], 1)
            return torch.cat((right, left), dim=1)

    relevance = torch.tensor([10.0, 1.0]).view(1, 2, 1, 1)
    found = by_hand(Then(Twice()), torch.ones(1, 1, 1, 1), relevance, "here")
    assert found.item() == 11


def test_lap_is_in_proportion_to_its_weights() -> None:
    from lapbench.models.lap import ConceptScoring, LAP2d

    torch.manual_seed(0)
    lap = LAP2d(ConceptScoring(3, init="default"), 3, 2)
    x, relevance = torch.randn(1, 3, 5, 7), torch.randn(1, 3, 2, 3)
    found = by_hand(Then(lap), x, relevance, "here")
    weights, expected = lap.window_weights(x), torch.zeros(3, 5, 7)
    for k in range(3):
        for i in range(2):
            for j in range(3):
                cells = [(2 * i + m, 2 * j + n) for m in range(3) for n in range(3)]
                shares = [x[0, k, y, u].clamp_min(0) * weights[0, c, i, j] for c, (y, u) in enumerate(cells)]
                for share, (y, u) in zip(shares, cells, strict=True):
                    expected[k, y, u] += share * relevance[0, k, i, j] / sum(shares)
    torch.testing.assert_close(found[0].detach(), expected.detach())


def test_batch_norm_relu_and_dropout_pass_relevance_on_unchanged() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout())
    relevance = torch.randn(1, 2, 3, 4)
    assert torch.equal(by_hand(Then(chain), torch.randn(1, 2, 3, 4), relevance, "here"), relevance)


# --- properties


def test_batch_norm_as_the_identity_changes_nothing() -> None:
    """The authors' code multiplies relevance by X w / (X w + 1e-9), w = γ / √(σ² + ε)."""
    model, batch = small_resnet().double(), images().double()

    def published(operation: Operation, relevance: Tensor) -> tuple[Tensor]:
        norm: nn.BatchNorm2d = operation.module
        xw = operation.inputs[0] * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
        return (relevance * xw / (xw + 1e-9),)

    ours = relevance_cam_rules()
    start = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    passes = passes_of(model, batch, TARGET)
    theirs = passes.relevance(start, lambda o: published if o.kind is nn.BatchNorm2d else ours(o), "layer1")
    # their 1e-9 shrinks a cell by the share 1e-9 / |X w|: much of a cell that hardly holds anything
    atol = 1e-6 * float(theirs.abs().max())
    torch.testing.assert_close(passes.relevance(start, ours, "layer1"), theirs, rtol=0, atol=atol)


def test_gates_and_smooth_activations_pass_relevance_back() -> None:
    """Of a squeeze-and-excitation block, the channels that are gated receive all."""
    torch.manual_seed(0)
    block = SqueezeExcitation(4, 2, scale_activation=nn.Sigmoid)
    relevance, x = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    chain = nn.Sequential(nn.SiLU(), block, nn.Hardswish(), nn.GELU())
    assert torch.equal(by_hand(Then(chain), x, relevance, "here"), relevance)


@pytest.mark.parametrize(("plug_it", "layer"), [(False, "layer4"), (False, "layer3"), (True, "layer4")])
def test_relevance_is_conserved(plug_it: bool, layer: str) -> None:
    """Nothing is lost on the way but at units that nothing reaches, of which there are none here."""
    model, batch = small_resnet(), images().double()
    model = (plugged(model) if plug_it else model).double()
    start = torch.rand(3, 4, dtype=torch.float64)
    with untouched(model):
        found = by_hand(model, batch, start, layer)
    torch.testing.assert_close(found.sum((1, 2, 3)), start.sum(1))


def test_the_contrastive_start_tells_classes_apart_better_than_a_plain_one() -> None:
    model, batch = small_resnet(), images()
    features = model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(batch)))))
    features = model.layer2(features)
    plain, contrastive = [], []
    for c in (0, 1):
        one_hot = F.one_hot(torch.full((3,), c), 4).float()
        relevance = by_hand(model, batch, one_hot, "layer2")
        plain.append((relevance.mean((2, 3), keepdim=True) * features).sum(1).flatten(1).detach())
        contrastive.append(maps(model, batch, torch.full((3,), c), layer="layer2").flatten(1))
    assert (F.cosine_similarity(*contrastive) < F.cosine_similarity(*plain)).all()
    assert (F.cosine_similarity(*contrastive) < 0.995).all()


FAST = (
    "alexnet", "squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_y_400mf",
)  # fmt: skip
SLOW = (
    "resnet50", "wide_resnet50_2", "resnext50_32x4d", "vgg11_bn", "densenet121", "googlenet", "inception_v3",
    "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf",
    "convnext_tiny",
)  # fmt: skip


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.parametrize("plug_it", [False, True])
def test_every_network_from_its_last_to_a_shallow_layer(name: str, plug_it: bool) -> None:
    """A shallow layer is reached through every kind of operation that the network has."""
    model, batch = network(name), images(2, 107)
    model = plugged(model) if plug_it else model
    convolutions = [part for part, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    for layer in ("last", convolutions[0]):
        found = maps(model, batch, TARGET[:2], layer=layer)
        assert torch.isfinite(found).all()
        assert found.abs().max() > 0


@pytest.mark.parametrize("layer", ["last", "Mixed_6e", "maxpool2"])
def test_inception_with_lap_at_every_depth(layer: str) -> None:
    found = maps(plugged(network("inception_v3")), images(2, 107), TARGET[:2], layer=layer)
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0


@pytest.mark.parametrize(
    "settings", [{"branch_mode": "separate"}, {"branch_mode": "post_add"}, {"sites": "all"}]
)
def test_lap_networks_of_every_kind(settings: dict[str, object]) -> None:
    found = maps(plugged(small_resnet(), **settings), images(), layer="layer1")
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0


def test_an_operation_without_a_rule_is_named() -> None:
    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Exponential(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(NotApplicableError, match="no rule for 'exp', which lies between the layer and"):
        maps(model, images(2, 64), TARGET[:2], layer="0")


def test_wrong_layers_are_named() -> None:
    with pytest.raises(ExplainerError, match="no layer 'layer9'; did you mean 'layer"):
        maps(small_resnet(), images(), layer="layer9")
    with pytest.raises(NotApplicableError, match=r"layer 'fc' puts out no feature map \(B, C, h, w\)"):
        maps(small_resnet(), images(), layer="fc")


def test_other_outputs_than_logits_are_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.convolution(x)
            return x.mean((2, 3)), x

    with pytest.raises(NotApplicableError, match=r"must return logits \(B, N\) alone"):
        maps(Two(), images(), layer="convolution")
