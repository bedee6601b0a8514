"""Networks as a definition describes them: built fresh, or with the weights of a subject."""

from collections.abc import Callable

from torch import nn

from lapbench import benchmark as definition
from lapbench.models.captioner import Captioner
from lapbench.models.plug import plug, put_antehoc, put_bla
from lapbench.models.weights import copy_weights, load_weights, randomise
from lapbench.models.zoo import build
from lapbench.pipeline.job import Job, Subject
from lapbench.train.hardware import resolve_device


def new_network(job: Job, model: definition.Model) -> nn.Module:
    """Build a model's network, with the layers that the definition says, with fresh weights.

    What writes captions has that network as its encoder.
    """
    dataset, decoder = job.dataset, model.decoder
    network = build(
        model.architecture,
        num_classes=len(dataset.classes) if decoder is None else decoder.hidden,
        in_channels=job.benchmark.data.channels,
        parameters=model.parameters,
    )
    if model.plug:
        network = plug(network, model.plug, classes=dataset.classes)
    elif model.bla:
        network = put_bla(network, model.bla)
    elif model.antehoc:
        network = put_antehoc(network, model.antehoc)
    if decoder is None:
        return network
    vocabulary, length = len(dataset.classes), dataset.answer_size
    return Captioner(network, vocabulary=vocabulary, length=length, hidden=decoder.hidden)


def load_network(job: Job, subject: Subject) -> nn.Module:
    """Build the network of a subject with its weights, in eval mode, on the job's device."""
    network = new_network(job, subject.model)
    if subject.randomised:
        network = randomise(network, seed=subject.seed)
    else:
        copy_weights(network, load_weights(subject.weights), source=str(subject.weights))
    return network.to(resolve_device(job.workspace.device)).eval()


class Lazy:
    """A network that is built when it is first asked for: where nothing is missing, none is built."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build
        self._network: nn.Module | None = None

    def __call__(self) -> nn.Module:
        """Return the network."""
        if self._network is None:
            self._network = self._build()
        return self._network
