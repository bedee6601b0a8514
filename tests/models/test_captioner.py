import pytest
import torch
from torch import nn

from lapbench.benchmark import Concept, Plug
from lapbench.errors import DefinitionError, NotApplicableError
from lapbench.explain import explain
from lapbench.models import Captioner, build, lap_heads, lap_names, plug, predict, randomise, record_laps
from lapbench.models.predict import answer
from lapbench.registry import explainers

V, T, H = 9, 5, 12


def captioner(seed: int = 0, *, plugged: bool = False) -> Captioner:
    """A captioner with random weights, whose captions are of different lengths."""
    torch.manual_seed(seed)
    shape = {"width": 4, "blocks": (1, 1, 1, 1), "stem": "3x3", "stem_pool": False}
    encoder = build("resnet18", num_classes=H, parameters=shape)
    if plugged:
        encoder = plug(encoder, Plug(concepts=(Concept(name="all"),)), classes=("<end>", "a"))
    model = Captioner(encoder, vocabulary=V, length=T, hidden=H)
    with torch.no_grad():  # larger weights make other words likely at every step
        for part in (model.embedding, model.words):
            part.weight.mul_(4)
        model.encoder.fc.weight.mul_(4)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(12, 3, 32, 32)


def gru(cell: nn.GRUCell, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """One step for one sample, as Cho et al. write it, with torch's place for the reset gate."""
    (wr, wz, wn), (ur, uz, un) = cell.weight_ih.chunk(3), cell.weight_hh.chunk(3)
    (br, bz, bn), (cr, cz, cn) = cell.bias_ih.chunk(3), cell.bias_hh.chunk(3)
    reset, update = torch.sigmoid(wr @ x + br + ur @ h + cr), torch.sigmoid(wz @ x + bz + uz @ h + cz)
    fresh = torch.tanh(wn @ x + bn + reset * (un @ h + cn))
    return (1 - update) * fresh + update * h


def slowly(model: Captioner, image: torch.Tensor, told: list[int] | None = None):
    """Write for one image, word by word: the logits of every step and the words, up to the end."""
    features = torch.tanh(model.encoder(image[None]))[0]
    state, word, logits, words = features, 0, [], []
    for step in range(T):
        state = gru(model.cell, torch.cat([model.embedding.weight[word], features]), state)
        logits.append(model.words.weight @ state + model.words.bias)
        words.append(int(logits[-1].argmax()))
        word = words[-1] if told is None else told[step]
        if told is None and word == 0:
            break
    return torch.stack(logits), words


def test_writing_word_by_word(images):
    """Scores are the largest logits up to the end, captions 0 behind it; some end early."""
    model = captioner()
    with torch.no_grad():
        scores, captions = model(images), model.describe(images)
        lengths = set()
        for image, score, caption in zip(images, scores, captions, strict=True):
            logits, words = slowly(model, image)
            torch.testing.assert_close(score, logits.amax(0), rtol=1e-4, atol=1e-4)
            assert caption.tolist() == words + [0] * (T - len(words))
            lengths.add(len(words))
    assert len(lengths) > 1


def test_following_the_words_that_are_told(images):
    model, tokens = captioner(), torch.randint(0, V, (12, T))
    with torch.no_grad():
        found = model(images, tokens)
        assert found.shape == (12, T, V)
        for image, told, logits in zip(images, tokens, found, strict=True):
            torch.testing.assert_close(logits, slowly(model, image, told.tolist())[0], rtol=1e-4, atol=1e-4)


def test_told_its_own_words_it_says_the_same(images):
    """Up to the end of each caption, teaching and writing are one computation."""
    model = captioner()
    with torch.no_grad():
        scores, captions = model.answer(images)
        logits = model(images, captions)
    counts = ((captions == 0).cumsum(1) - (captions == 0).long() == 0)[:, :, None]
    torch.testing.assert_close(logits.masked_fill(~counts, -torch.inf).amax(1), scores)


def test_answers_hold_scores_and_captions_and_what_laps_saw(images):
    model = captioner(plugged=True)
    found = answer(model, images)
    assert torch.equal(found.logits, predict(model, images))
    assert torch.equal(found.tokens, model.describe(images))
    assert found.peaks.shape[0] == 12
    with record_laps(model) as records, torch.no_grad():
        model(images)
    assert found.peaks.shape[1] == len(records) > 0
    assert (lap_names(model), lap_heads(model)) == (("all",), ((),))


def test_random_weights_reach_every_part(images):
    model = captioner()
    other = randomise(model, seed=1)
    same = {k for k, v in other.state_dict().items() if torch.equal(v, model.state_dict()[k])}
    assert not {key for key in same if key.startswith(("embedding", "cell", "words", "encoder.conv1"))}


def test_gradients_of_a_words_score(images):
    """What explainers walk back through the unrolled decoder, against torch's own derivative."""
    model, target = captioner(), torch.arange(12) % V
    leaf = images.clone().requires_grad_()
    model(leaf).gather(1, target[:, None]).sum().backward()
    found = explain(explainers.get("gradient"), model, images, target, {"reduce": "sum"}).values
    torch.testing.assert_close(found, leaf.grad.sum(1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("plugged", [False, True])
def test_class_activation_maps_of_a_word(images, plugged):
    """Grad-CAM at the encoder's last stage, by a hook of torch's."""
    model, target, seen = captioner(plugged=plugged), torch.arange(12) % V, []
    handle = model.encoder.layer4.register_forward_hook(lambda _m, _i, out: seen.append(out))
    score = model(images).gather(1, target[:, None]).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, seen[0])
    wanted = (gradient.mean((2, 3), keepdim=True) * seen[0]).sum(1).relu()
    found = explain(explainers.get("grad_cam"), model, images, target, {}).values
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["guided_backprop", "layer_cam", "occlusion", "integrated_gradients", "deeplift"]
)
def test_other_explainers_draw_maps(images, name):
    found = explain(explainers.get(name), captioner(), images[:2], torch.tensor([1, 3]), {})
    assert torch.isfinite(found.values).all()
    assert found.values.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lrp", "LRP has no rule for"),
        ("relevance_cam", "Relevance-CAM has no rule for"),
        ("cam", "CAM needs one"),
    ],
)
def test_rules_that_do_not_know_the_decoder_say_so(images, name, reason):
    with pytest.raises(NotApplicableError, match=reason):
        explain(explainers.get(name), captioner(), images[:2], torch.tensor([1, 3]), {})


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_an_encoder_with_auxiliary_answers_is_refused_and_one_without_is_not(name):
    options = {"vocabulary": V, "length": T, "hidden": H}
    with pytest.raises(DefinitionError, match="auxiliary classifiers: set aux_logits = false"):
        Captioner(build(name, num_classes=H), **options)
    encoder = build(name, num_classes=H, parameters={"aux_logits": False})
    assert Captioner(encoder, **options).encoder is encoder
