import numpy as np
import pytest

from lapbench.data.captions import (
    caption_scores,
    check_caption,
    check_vocabulary,
    counted,
    decode,
    encode,
    padded,
)
from lapbench.errors import DataError

WORDS = ("<end>", "a", "red", "circle", "square")


def test_words_become_numbers_and_back():
    tokens = encode("a red circle", WORDS, where="mine.csv:3")
    assert tokens == (1, 2, 3)
    np.testing.assert_array_equal(padded([tokens, (4.0,)], 4), [[1, 2, 3, 0], [4, 0, 0, 0]])
    assert decode([1, 2, 3, 0, 4], WORDS) == "a red circle"


def test_a_word_outside_the_vocabulary():
    with pytest.raises(DataError) as caught:
        encode("a red circel", WORDS, where="mine.csv:3")
    assert str(caught.value) == (
        "mine.csv:3: the vocabulary has no word 'circel', which stands in 'a red circel';"
        " did you mean 'circle'?"
    )


@pytest.mark.parametrize("wrong", [(), ("<end>",), ("a", "<end>")])
def test_vocabularies_begin_with_the_end(wrong):
    with pytest.raises(ValueError, match="a vocabulary begins with '<end>', then come its words"):
        check_vocabulary(wrong)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((), "the caption is empty: wanted one word or more"),
        ((1, 5), "5 is no word: wanted numbers from 1 to 4, without the end"),
        ((1, 0, 3), "0 is no word"),
        ((1.5,), "1.5 is no word"),
        ((1, 4), "the target 'circle' is no word of the caption 'a square'"),
    ],
)
def test_captions_that_are_none(answer, message):
    with pytest.raises(ValueError, match=message):
        check_caption(answer, WORDS, "circle")


def test_words_count_up_to_the_first_end():
    tokens = np.array([[1, 2, 0, 0], [1, 2, 3, 4], [0, 1, 0, 1]])
    np.testing.assert_array_equal(counted(tokens), [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])


def test_scores_by_hand():
    truth = np.array([[1, 2, 3, 0, 0], [1, 4, 0, 0, 0]])
    said = np.array([[[1, 2, 3, 0, 4], [1, 4, 2, 0, 0]], [[1, 3, 3, 0, 0], [0, 4, 0, 1, 1]]])
    scores = caption_scores(said, truth)
    np.testing.assert_allclose(scores["word_accuracy"], [[1, 2 / 3], [3 / 4, 2 / 3]])
    np.testing.assert_array_equal(scores["caption_accuracy"], [[1, 0], [0, 0]])
