"""One place decides what the texts call things."""

from miselbo.runtime.words import reword

WORDS = {"example": "replicate", "examples": "replicates", "decoder passes": "target evaluations"}


def test_whole_words_only():
    assert reword("per_example, for example 3 examples", WORDS) == "per_example, for replicate 3 replicates"


def test_capitals_and_phrases():
    assert reword("Examples and Decoder passes", WORDS) == "Replicates and Target evaluations"


def test_no_words_no_change():
    assert reword("3 examples", {}) == "3 examples"
