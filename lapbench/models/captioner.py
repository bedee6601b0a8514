"""A network that writes captions: any CNN sees, a recurrent network (GRU) writes word after word.

After "Show and Tell: A Neural Image Caption Generator" (Vinyals, Toshev, Bengio, Erhan; CVPR 2015), with the
gated recurrent unit of Cho et al. (EMNLP 2014) in the place of the LSTM, and the features at every step.
"""

import torch
from torch import Tensor, nn

from lapbench.errors import DefinitionError


class Captioner(nn.Module):
    """An encoder whose outputs (B, hidden) a decoder puts into words.

    vocabulary: the number of words; number 0 is the end of a caption, and also what stands before its first
    word. length: the most words that are written, the end included. Raises DefinitionError for an encoder
    that gives auxiliary answers beside the one.
    """

    def __init__(self, encoder: nn.Module, *, vocabulary: int, length: int, hidden: int) -> None:
        super().__init__()
        if getattr(encoder, "aux_logits", False):
            raise DefinitionError(
                f"a decoder cannot read {type(encoder).__name__} with its auxiliary classifiers: "
                "set aux_logits = false in its parameters"
            )
        self.encoder, self.length = encoder, length
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.cell = nn.GRUCell(2 * hidden, hidden)
        self.words = nn.Linear(hidden, vocabulary)
        concepts = ("lap_heads", "lap_names")  # of a plugged encoder, as `lapbench.models.plug` notes them
        vars(self).update({name: vars(encoder)[name] for name in concepts if name in vars(encoder)})

    def forward(self, images: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Score words: without tokens every word of the vocabulary for an image, (B, V).

        The score of a word is its largest logit over the steps of the caption that the network writes, always
        the likeliest word next. With the tokens (B, T) of true captions: the logits of each step, (B, T, V),
        where the true words came before.
        """
        features = self._features(images)
        if tokens is None:
            return self._write(features)[0]
        # inside `lapbench.models.weighting.second_pass` the encoder answers twice to each image
        tokens = tokens.repeat(len(features) // len(tokens), 1)
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        state, steps = features, []
        for words in before.unbind(1):
            state, logits = self._step(features, state, words)
            steps.append(logits)
        return torch.stack(steps, dim=1)

    def describe(self, images: Tensor) -> Tensor:
        """Write captions: the numbers of their words, (B, length), 0 from the end on."""
        return self.answer(images)[1]

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the words' scores and the captions from one pass."""
        return self._write(self._features(images))

    def _features(self, images: Tensor) -> Tensor:
        return torch.tanh(self.encoder(images))

    def _step(self, features: Tensor, state: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and its logits, after these words (B,)."""
        state = self.cell(torch.cat([self.embedding(words), features], dim=1), state)
        return state, self.words(state)

    def _write(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Write greedily; what is computed behind a caption's end counts nowhere."""
        state, scores = self._step(features, features, features.argmax(1) * 0)
        words = scores.argmax(1)
        captions, ended = [words], words == 0
        for _ in range(self.length - 1):
            state, logits = self._step(features, state, words)
            scores = torch.where(ended[:, None], scores, torch.maximum(scores, logits))
            words = logits.argmax(1).masked_fill(ended, 0)
            captions.append(words)
            ended = ended | (words == 0)
        return scores, torch.stack(captions, dim=1)
