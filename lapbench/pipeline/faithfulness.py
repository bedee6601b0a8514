"""Insertion and deletion, where the protocol asks for them: the one kind of score that runs networks."""

from functools import partial

import numpy as np
import torch

from lapbench.executor import MOST, in_batches
from lapbench.models.predict import predict
from lapbench.pipeline.job import Block, Job, Source
from lapbench.pipeline.networks import Lazy, load_network
from lapbench.pipeline.samples import Samples
from lapbench.score.faithfulness import Faithfulness, insert_and_delete
from lapbench.store import Shard
from lapbench.train.hardware import resolve_device
from lapbench.types import Array, FloatArray, MaskArray


def network_of(job: Job, source: Source) -> Lazy | None:
    """Return the network to be asked about a source's maps, or None where nothing is to be asked."""
    if job.benchmark.protocol.deletion_steps is None or source.subject is None:
        return None
    return Lazy(partial(load_network, job, source.subject))


def faithfulness(
    job: Job,
    network: Lazy,
    samples: Samples,
    block: Block,
    shard: Shard,
    maps: FloatArray,
    counted: MaskArray,
) -> Faithfulness:
    """Delete and insert the pixels of a block's images in the order of its maps.

    A deleted pixel has the mean colour, 0 for the network; the answer is the probability of the class that
    the map explains. counted: (n,) which images count; maps: (m, H, W), of those alone, at the images' size.
    """
    asks = [partial(_answer, job, network, int(target)) for target in shard.targets[counted]]
    images = samples.images(block).numpy()[counted]
    return insert_and_delete(asks, images, maps, steps=job.benchmark.protocol.deletion_steps or 1)


def _answer(job: Job, network: Lazy, target: int, images: FloatArray) -> Array:
    """Return the network's probability of a class for each image, (n,)."""
    device = resolve_device(job.workspace.device)
    logits = in_batches(
        lambda start, stop: predict(network(), torch.from_numpy(images[start:stop]).to(device)).cpu(),
        len(images),
        most=MOST[device.type],
    )
    return np.asarray(torch.cat(logits).double().softmax(dim=1)[:, target])
