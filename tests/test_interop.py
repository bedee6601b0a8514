"""The bridges, held against the foreign libraries called directly."""

import copy
import functools
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import Saliency
from explain.networks import images, plugged, small_resnet
from torch import Tensor, nn

import lapbench
from lapbench import check_explainer, interop
from lapbench.errors import ExplainerError, MissingLibraryError, ScoreError, UnknownNameError
from lapbench.explain import explain as draw
from lapbench.explain import run_checks
from lapbench.registry import explainers
from lapbench.score import iou_top_k, upsample
from lapbench.store import MapStore, Shard
from lapbench.types import FloatArray, MaskArray

TARGET = torch.tensor([0, 1, 2])
needs_quantus = pytest.mark.skipif(
    find_spec("quantus") is None, reason="Quantus is missing: pip install 'lapbench[interop]'"
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_resnet()


# --- lapbench's explainers as Quantus' explain_func


def test_maps_are_those_of_explain_at_the_size_of_the_image(network: nn.Module) -> None:
    batch = images()
    raw = draw(explainers.get("grad_cam"), network, batch, TARGET, {"layer": "layer3"}).values

    maps = interop.quantus_explain_func("grad_cam", layer="layer3")(network, batch.numpy(), TARGET.numpy())

    assert maps.shape == (3, 1, 32, 48) and maps.dtype == np.float32
    assert np.array_equal(maps[:, 0], upsample(raw.numpy(), (32, 48)))
    wanted = F.interpolate(raw[:, None], (32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(torch.from_numpy(maps), wanted, rtol=0, atol=1e-6 * float(raw.abs().max()))


def test_maps_as_fine_as_the_image_are_left_as_they_are(network: nn.Module) -> None:
    raw = draw(explainers.get("guided_backprop"), network, images(), TARGET).values

    maps = interop.quantus_explain_func("guided_backprop")(network, images(), TARGET)

    assert np.array_equal(maps[:, 0], raw.numpy())


def test_an_explainer_is_upsampled_by_its_own_rule(network: nn.Module) -> None:
    spec = replace(explainers.get("grad_cam"), upsample="nearest")
    raw = draw(spec, network, images(), TARGET, {"layer": "layer3"}).values

    maps = interop.quantus_explain_func(spec, layer="layer3")(network, images(), TARGET)

    assert np.array_equal(maps[:, 0], upsample(raw.numpy(), (32, 48), "nearest"))


def gradient(model: nn.Module, batch: Tensor, target: Tensor, *, power: int = 1) -> Tensor:
    """The gradient of the target's logit."""
    batch = batch.requires_grad_()
    score = model(batch).gather(1, target[:, None]).sum()
    return torch.autograd.grad(score, batch)[0].sum(1) ** power


def test_a_plain_function_takes_what_quantus_hands_over(network: nn.Module) -> None:
    explain_func = interop.quantus_explain_func(gradient)
    expected = draw(gradient, network, images(), TARGET).values.numpy()[:, None]

    flipped = images().numpy()[:, :, :, ::-1].copy()[:, :, :, ::-1]
    frozen = images().numpy()
    frozen.flags.writeable = False
    for inputs, targets in [
        (images().numpy().astype(np.float64), TARGET.numpy().astype(np.int32)),
        (flipped, TARGET.numpy()),
        (frozen, TARGET.numpy()),
        (images(), [0, 1, 2]),
        (images(), TARGET[:, None]),
    ]:
        given = explain_func(model=network, inputs=inputs, targets=targets, device="cpu")
        assert np.array_equal(given, expected)
    squared = explain_func(network, images(), TARGET, power=2)
    np.testing.assert_allclose(squared, expected**2, rtol=1e-6)


def test_what_has_attribute_is_an_explainer(network: nn.Module) -> None:
    expected = Saliency(network).attribute(images().requires_grad_(), TARGET).sum(1)

    maps = interop.quantus_explain_func(Saliency)(network, images().numpy(), TARGET.numpy())

    assert np.array_equal(maps[:, 0], expected.numpy())


def test_a_network_in_train_mode_stays_as_it_was() -> None:
    model = small_resnet().train()
    before = copy.deepcopy(model.state_dict())

    interop.quantus_explain_func("grad_cam")(model, images(), TARGET)

    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_explain_func_refuses_what_cannot_be(network: nn.Module) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'grad_cam'"):
        interop.quantus_explain_func("gradcam")
    with pytest.raises(ExplainerError, match="has no parameter 'layr'; did you mean 'layer'"):
        interop.quantus_explain_func("grad_cam", layr="layer3")
    with pytest.raises(ExplainerError, match="has no parameter 'layr'; did you mean 'layer'"):
        interop.quantus_explain_func("grad_cam")(network, images(), TARGET, layr="layer3")
    with pytest.raises(ExplainerError, match="'oracle' needs masks, which Quantus does not hand over"):
        interop.quantus_explain_func("oracle")
    with pytest.raises(ExplainerError, match=r"images must be \(B, C, H, W\), found \(3, 32, 48\)"):
        interop.quantus_explain_func("grad_cam")(network, images()[0], [0])


@needs_quantus
def test_quantus_calls_it(network: nn.Module) -> None:
    import quantus

    explain_func = interop.quantus_explain_func("grad_cam", layer="layer3")
    batch, target = images().numpy(), TARGET.numpy()
    masks = np.zeros((3, 1, 32, 48), bool)
    masks[:, :, 8:20, 4:30] = True
    metric = quantus.RelevanceRankAccuracy(disable_warnings=True)
    given = {"model": network, "x_batch": batch, "y_batch": target, "s_batch": masks}

    called = metric(**given, explain_func=explain_func, explain_func_kwargs={"layer": "layer2"}, device="cpu")

    assert called == metric(**given, a_batch=explain_func(network, batch, target, layer="layer2"))
    logit = quantus.RandomLogit(num_classes=4, seed=1, disable_warnings=True)
    scores = logit(model=network, x_batch=batch, y_batch=target, explain_func=explain_func)
    assert len(scores) == 3 and np.isfinite(scores).all()


# --- Quantus' metrics on stored maps


def stored(maps: FloatArray, folder: Path) -> Shard:
    """Write maps to a store, and read them again."""
    ids = tuple(f"image-{number}" for number in range(len(maps)))
    store = MapStore(folder)
    store.write("maps", "0" * 64, Shard(ids, np.zeros(len(maps), np.int64), {"maps": maps}))
    shard = store.read("maps", "0" * 64)
    assert shard is not None
    return shard


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Signed maps of 6 images at a resolution of their own."""
    return stored(np.random.default_rng(3).normal(size=(6, 9, 7)).astype(np.float32), tmp_path)


@pytest.fixture
def masks() -> MaskArray:
    """One box an image at 36×21 pixels."""
    random, masks = np.random.default_rng(4), np.zeros((6, 36, 21), bool)
    for mask in masks:
        y, x = random.integers(0, 18), random.integers(0, 10)
        mask[y : y + 12, x : x + 9] = True
    return masks


@needs_quantus
def test_rank_accuracy_is_the_precision_of_our_top_k(shard: Shard, masks: MaskArray) -> None:
    import quantus

    precision = interop.quantus_scores(quantus.RelevanceRankAccuracy(disable_warnings=True), shard, masks)

    ours = iou_top_k(upsample(shard.maps, (36, 21)), masks)
    assert precision.ids == shard.ids and precision.excluded == {} and not precision.absolute
    assert (ours.tied < 0.01).all()  # nothing is left to a tie rule
    np.testing.assert_allclose(precision.scores / (2 - precision.scores), ours.iou, rtol=1e-12)


@needs_quantus
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("RelevanceRankAccuracy", {}),
        ("RelevanceMassAccuracy", {"abs": True}),
        ("PointingGame", {}),
        ("TopKIntersection", {"k": 50}),
        ("AUC", {}),
        ("AttributionLocalisation", {}),
        ("AttributionLocalisation", {"abs": False, "positive_attributions": True}),
        ("Sparseness", {}),
        ("Complexity", {}),
        ("EffectiveComplexity", {}),
    ],
)
def test_scores_are_those_of_quantus(
    name: str, settings: dict[str, object], shard: Shard, masks: MaskArray
) -> None:
    import quantus

    metric = getattr(quantus, name)(disable_warnings=True, **settings)
    maps = upsample(shard.maps, (36, 21))[:, None]
    with warnings.catch_warnings():  # AttributionLocalisation divides by the size of no image
        warnings.simplefilter("ignore")
        directly = [
            metric(
                model=None, x_batch=np.ones((1, 3, 36, 21)), y_batch=np.zeros(1), a_batch=maps[i : i + 1],
                s_batch=masks[i : i + 1, None], channel_first=True,
            )[0]
            for i in range(6)
        ]  # fmt: skip
    kept = list(metric.all_evaluation_scores)

    bridged = interop.quantus_scores(metric, shard, masks)

    assert np.array_equal(bridged.scores, np.array(directly, np.float64))
    assert bridged.excluded == {} and bridged.absolute == metric.abs
    assert bridged.mean == pytest.approx(np.mean(directly))
    assert metric.all_evaluation_scores == kept  # the caller's metric does not remember ours


@needs_quantus
def test_known_faults_are_excluded_and_counted(tmp_path: Path) -> None:
    import quantus

    random = np.random.default_rng(5)
    maps = random.random((7, 8, 8), dtype=np.float32) + 0.1
    maps[1] = 2
    maps[2, 0, 0] = np.nan
    maps[3] *= -1
    maps[4, 0, 0] = -0.5
    masks = np.zeros((7, 8, 8), bool)
    masks[:, 2:5, 2:5] = True
    masks[5] = False
    shard = stored(maps, tmp_path)
    common = {"no truth": 1, "flat": 1, "not finite": 1, "negative everywhere": 1}

    pointing = interop.quantus_scores(quantus.PointingGame(disable_warnings=True), shard, masks)
    mass = interop.quantus_scores(quantus.RelevanceMassAccuracy(disable_warnings=True), shard, masks)
    masks[6] = True
    area = interop.quantus_scores(quantus.AUC(disable_warnings=True), shard, masks)
    complexity = interop.quantus_scores(quantus.Complexity(disable_warnings=True), shard, masks)

    assert pointing.excluded == common
    assert np.isfinite(pointing.scores).tolist() == [True, False, False, False, True, False, True]
    assert mass.excluded == common | {"negative values": 1}
    assert ((mass.scores[[0, 6]] > 0) & (mass.scores[[0, 6]] < 1)).all()
    assert area.excluded == common | {"undefined by Quantus": 1}
    assert complexity.excluded == {name: 1 for name in common if name != "no truth"}


@needs_quantus
def test_without_any_score_there_is_no_mean(shard: Shard, masks: MaskArray) -> None:
    import quantus

    found = interop.quantus_scores(quantus.PointingGame(disable_warnings=True), shard, np.zeros_like(masks))

    assert np.isnan(found.mean) and found.excluded == {"no truth": 6}


@needs_quantus
def test_scores_refuse_what_quantus_gets_wrong(
    shard: Shard, masks: MaskArray, capsys: pytest.CaptureFixture[str]
) -> None:
    import quantus

    quiet = {"disable_warnings": True}
    for metric, fault in [
        (quantus.PointingGame(weighted=True, **quiet), r"PointingGame\(weighted=True\) is not computed"),
        (quantus.AttributionLocalisation(weighted=True, **quiet), "Quantus gets it wrong"),
        (quantus.AUC(return_aggregate=True, **quiet), "one number for all, not one an image"),
        (quantus.PixelFlipping(**quiet), r"PixelFlipping \(Faithfulness\) needs the network"),
        (quantus.Focus(**quiet), r"Focus \(Localisation\) needs the network"),
        (quantus.AUC, r"an object is wanted, not the class: AUC\(\)"),
        ("AUC", "a metric of Quantus is wanted, found str"),
        (
            quantus.TopKIntersection(k=10**6, **quiet),
            "Quantus' TopKIntersection failed on 'image-0': ValueError: 'k' must be smaller than input size",
        ),
    ]:
        with pytest.raises(ScoreError, match=fault):
            interop.quantus_scores(metric, shard, masks)
    metric = quantus.AttributionLocalisation(max_size=0.0, **quiet)
    with pytest.raises(ScoreError, match="one mask for each of 6 maps is wanted, found 5"):
        interop.quantus_scores(metric, shard, masks[:5])
    with pytest.raises(ScoreError, match="masks must be bool"):
        interop.quantus_scores(metric, shard, masks.astype(np.uint8))
    interop.quantus_scores(metric, shard, masks)
    assert capsys.readouterr().out == ""  # it would print that a truth is larger than max_size


# --- pytorch-grad-cam's methods as explainers


def methods(*names: str) -> Iterator[object]:
    import pytorch_grad_cam

    return (getattr(pytorch_grad_cam, name) for name in names)


@pytest.mark.parametrize(
    "name", ["GradCAM", "GradCAMPlusPlus", "LayerCAM", "XGradCAM", "HiResCAM", "ScoreCAM", "AblationCAM"]
)
def test_cams_are_those_of_pytorch_grad_cam(
    name: str, network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    (cam,) = methods(name)
    twin = copy.deepcopy(network)
    targets = [ClassifierOutputTarget(number) for number in TARGET.tolist()]
    directly = cam(model=twin, target_layers=[twin.layer3])(images(), targets)
    capsys.readouterr()

    maps = draw(interop.from_grad_cam(cam, layer="layer3"), network, images(), TARGET).values

    assert maps.shape == (3, 32, 48)
    assert float(maps.min()) == 0 and maps.amax((1, 2)).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert np.array_equal(maps.numpy(), directly)
    assert capsys.readouterr() == ("", "")  # no progress bar


def test_smoothing_is_handed_on(network: nn.Module) -> None:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    (cam,) = methods("GradCAM")
    twin = copy.deepcopy(network)
    targets = [ClassifierOutputTarget(number) for number in TARGET.tolist()]
    directly = cam(model=twin, target_layers=[twin.layer4])(
        images(), targets, aug_smooth=True, eigen_smooth=True
    )

    smooth = interop.from_grad_cam(cam, aug_smooth=True, eigen_smooth=True)

    assert np.array_equal(draw(smooth, network, images(), TARGET).values.numpy(), directly)


@pytest.mark.parametrize("name", ["GradCAMPlusPlus", "ScoreCAM"])
def test_cams_keep_the_contract_bare(name: str, network: nn.Module) -> None:
    (cam,) = methods(name)
    check_explainer(interop.from_grad_cam(cam, layer="layer1"), network, images(2), TARGET[:2], bare=True)


def test_cams_of_a_network_with_lap() -> None:
    (cam,) = methods("GradCAMPlusPlus")
    check_explainer(interop.from_grad_cam(cam), plugged(small_resnet()), images(), TARGET)


def test_only_the_declarations_are_left_to_say() -> None:
    """What is class-agnostic by its definition must be registered so; the rest of the contract holds."""
    (cam,) = methods("EigenCAM")
    outcomes = run_checks(interop.from_grad_cam(cam, layer="layer3"), small_resnet(), images(), TARGET)

    assert [check.name for check in outcomes if not check.passed] == ["depends on target"]


def test_any_maker_of_cams_will_do(network: nn.Module) -> None:
    (cam,) = methods("GradCAM")
    halved = functools.partial(cam, reshape_transform=lambda activation: activation[:, :4])
    explainer = interop.from_grad_cam(halved, layer="layer3")

    maps = draw(explainer, network, images(), TARGET).values

    assert not torch.equal(maps, draw(interop.from_grad_cam(cam), network, images(), TARGET).values)
    assert explainer.__name__ == "GradCAM"
    assert explainer.__doc__ == "GradCAM of pytorch-grad-cam, stretched to [0, 1] in every image."


def test_a_cam_can_be_registered(network: nn.Module, registered: None) -> None:
    (cam,) = methods("LayerCAM")
    lapbench.explainer("foreign_layer_cam", version=1, title="LayerCAM")(interop.from_grad_cam(cam))

    spec = explainers.get("foreign_layer_cam")
    assert spec.measures.startswith("LayerCAM of pytorch-grad-cam")
    assert draw(spec, network, images(), TARGET).values.shape == (3, 32, 48)


def test_a_wrong_layer_is_named(network: nn.Module) -> None:
    (cam,) = methods("GradCAM")
    with pytest.raises(ExplainerError, match="the network has no layer 'layr3'; did you mean 'layer3'"):
        draw(interop.from_grad_cam(cam, layer="layr3"), network, images(), TARGET)


# --- zennit's rules as explainers


def canonizer() -> object:
    from zennit.torchvision import ResNetCanonizer

    return ResNetCanonizer()


@pytest.mark.parametrize("name", ["EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1", "GuidedBackprop"])
@pytest.mark.parametrize("start", ["logit", "one"])
def test_relevance_is_that_of_zennit(name: str, start: str, network: nn.Module) -> None:
    from zennit import attribution, composites

    rules, chosen = getattr(composites, name), torch.eye(4)[TARGET]

    def begin(logits: Tensor) -> Tensor:  # of the network with merged batch norms, which differ by 1e-5
        return chosen * logits if start == "logit" else chosen

    twin = copy.deepcopy(network).requires_grad_(False)
    _, directly = attribution.Gradient(twin, rules(canonizers=[canonizer()]))(images(), begin)

    explainer = interop.from_zennit(rules, canonizers=[canonizer()], start=start)

    assert torch.equal(draw(explainer, network, images(), TARGET).values, directly.sum(1))
    assert explainer.__name__ == name


def test_relevance_sums_to_the_logit_where_no_bias_takes_a_share() -> None:
    from zennit.composites import EpsilonPlus

    model = small_resnet().double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.eps = 0  # zennit 0.5.1 merges a batch norm, and leaves its eps behind
    batch = images().double()

    rules = functools.partial(EpsilonPlus, epsilon=1e-12, stabilizer=1e-12)
    explainer = interop.from_zennit(rules, canonizers=[canonizer()])
    relevance = explainer(model, batch, TARGET).sum((1, 2))

    torch.testing.assert_close(relevance, model(batch).gather(1, TARGET[:, None])[:, 0], rtol=1e-6, atol=0)


def test_without_rules_it_is_the_gradient(network: nn.Module) -> None:
    plain = draw(interop.from_zennit(start="one"), network, images(), TARGET).values

    assert torch.equal(plain, draw(gradient, network, images(), TARGET).values)


@pytest.mark.parametrize("name", ["EpsilonPlus", "ExcitationBackprop"])
def test_relevance_keeps_the_contract_bare(name: str, network: nn.Module) -> None:
    from zennit import composites

    explainer = interop.from_zennit(getattr(composites, name), canonizers=[canonizer()])
    check_explainer(explainer, network, images(2), TARGET[:2], bare=True)


def test_integrated_gradients_keep_it_and_smoothgrad_depends_on_the_batch(network: nn.Module) -> None:
    from zennit.attribution import IntegratedGradients, SmoothGrad

    whole = interop.from_zennit(attributor=functools.partial(IntegratedGradients, n_iter=2), start="one")
    noisy = interop.from_zennit(attributor=functools.partial(SmoothGrad, n_iter=2), start="one")

    check_explainer(whole, network, images(2), TARGET[:2], bare=True)
    # one generator draws for all images of a batch
    outcomes = run_checks(noisy, network, images(2), TARGET[:2], bare=True)
    assert [c.name for c in outcomes if not c.passed] == ["alone as in a batch", "any order"]


def test_a_canonizer_that_fails_half_way_harms_no_network(network: nn.Module) -> None:
    from zennit.composites import EpsilonPlus

    class Failing:
        def apply(self, module: nn.Module) -> None:
            raise RuntimeError("half-way")

    before = {name: id(value) for name, value in vars(network.layer1[0]).items()}
    weights = copy.deepcopy(network.state_dict())

    with pytest.raises(ExplainerError, match="explainer 'EpsilonPlus' failed: RuntimeError: half-way"):
        draw(interop.from_zennit(EpsilonPlus, canonizers=[canonizer(), Failing()]), network, images(), TARGET)

    assert {name: id(value) for name, value in vars(network.layer1[0]).items()} == before
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


# --- the libraries are optional


@pytest.mark.parametrize(
    ("module", "name", "cross"),
    [
        ("pytorch_grad_cam", "pytorch-grad-cam", lambda: interop.from_grad_cam(object)),
        ("zennit", "zennit", lambda: interop.from_zennit()),
        ("quantus", "Quantus", lambda: interop.quantus_scores(None, None, None)),
    ],
)
def test_a_missing_library_is_named_with_the_extra(
    module: str, name: str, cross: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [other for other in sys.modules if other.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingLibraryError) as caught:
        cross()

    assert re.fullmatch(
        rf"the bridge to {name} needs {name}, which cannot be imported \(.*{module}.*\): "
        r"pip install 'lapbench\[interop\]'",
        str(caught.value),
    )


def test_no_library_is_imported_before_its_bridge_is_crossed() -> None:
    code = (
        "import sys, lapbench; lapbench.interop.from_zennit; "
        "print(*{'quantus', 'pytorch_grad_cam', 'zennit', 'cv2'} & set(sys.modules))"
    )

    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert found.stdout.split() == []


@needs_quantus
def test_the_example_of_the_readme_runs(registered: None) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## With other libraries")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    masks = np.zeros((3, 32, 48), bool)
    masks[:, 8:20, 4:30] = True
    names = {"network": small_resnet(), "images": images(), "target": TARGET, "masks": masks}

    exec(code, names)

    assert explainers.get("layer_cam_of_theirs").title == "LayerCAM"
    assert len(names["hits"]) == 3 and all(0 <= hit <= 1 for hit in names["hits"])


def test_the_module_shows_its_names() -> None:
    assert lapbench.interop is interop and "interop" in dir(lapbench)
    assert all(hasattr(interop, name) for name in interop.__all__)
