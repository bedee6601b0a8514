import pytest
import torch

from lapbench.errors import TrainingError
from lapbench.train import hardware
from lapbench.train.hardware import choose_hardware, resolve_device


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are so many GPUs."""

    def pretend(count: int, *, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU-{index}")

    return pretend


def test_without_a_gpu_everything_is_trained_in_full_precision_on_the_cpu(gpus):
    gpus(0)
    for precision in ("auto", "16-mixed", "bf16-mixed", "32-true"):
        for device in ("auto", "cpu"):
            found = choose_hardware(device, precision)
            assert (found.accelerator, found.count, found.precision, found.name) == (
                "cpu",
                1,
                "32-true",
                "cpu",
            )


def test_auto_takes_every_gpu_and_a_number_takes_one(gpus):
    gpus(4)
    found = choose_hardware("auto", "auto")
    assert (found.accelerator, found.devices, found.count, found.precision) == ("gpu", 4, 4, "bf16-mixed")
    assert found.name == "4 × GPU-0"
    found = choose_hardware("cuda:2", "32-true")
    assert (found.devices, found.count, found.precision, found.name) == ([2], 1, "32-true", "1 × GPU-2")
    assert choose_hardware("cuda", "32-true").devices == [0]
    assert choose_hardware("cpu", "auto").accelerator == "cpu"


def test_an_old_gpu_gets_float16(gpus):
    gpus(1, bf16=False)
    assert choose_hardware("auto", "auto").precision == "16-mixed"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu!", "there is no device 'gpu!'; known: auto, cpu, cuda, cuda:0, …"),
        ("mps", "device 'mps' is not supported: use auto, cpu, cuda or cuda:N"),
        ("cuda:3", "device 'cuda:3' is not there: torch finds 2 GPUs; use auto or cpu"),
    ],
)
def test_a_device_that_is_not_there(gpus, device, message):
    gpus(2)
    for ask in (resolve_device, lambda name: choose_hardware(name, "auto")):
        with pytest.raises(TrainingError) as error:
            ask(device)
        assert str(error.value) == message


def test_auto_resolves_to_what_is_there(gpus):
    gpus(1)
    assert hardware.resolve_device("auto") == torch.device("cuda")
    gpus(0)
    assert hardware.resolve_device("auto") == torch.device("cpu")
