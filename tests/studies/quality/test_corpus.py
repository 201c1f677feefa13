"""The text: nothing held out is trained on, and bad files are refused."""

import numpy as np
import pytest

from parallax.studies.quality.corpus import cloze, read_corpus


def paragraphs(tokens):
    text = tokens.astype(np.uint8).tobytes()
    return {b" ".join(p.split()) for p in text.split(b"\n\n")} - {b""}


def test_the_default_text_is_there_and_shares_no_paragraph():
    corpus = read_corpus(None)
    assert len(corpus.train) > 200_000
    share = len(corpus.validation) / (len(corpus.train) + len(corpus.validation))
    assert 0.07 < share < 0.101
    assert not paragraphs(corpus.train) & paragraphs(corpus.validation)
    assert b"statement" in corpus.train.astype(np.uint8).tobytes()
    assert corpus.sha256 == read_corpus(None).sha256


def test_repeated_paragraphs_of_files_go_and_the_end_of_each_is_held_out(tmp_path):
    lines = [f"Paragraph {i} of a file that says something new." for i in range(200)]
    (tmp_path / "a.txt").write_text("\n\n".join(lines))
    (tmp_path / "b.txt").write_text("\n\n".join(lines[::-1] + ["And one more."] * 3))
    corpus = read_corpus([tmp_path / "a.txt", tmp_path / "b.txt"])
    whole = np.concatenate([corpus.train, corpus.validation]).astype(np.uint8).tobytes()
    assert whole.count(b"Paragraph 150 of") == 1
    assert whole.count(b"And one more.") <= 1
    held_out = corpus.validation.astype(np.uint8).tobytes()
    assert b"Paragraph 199" in held_out
    assert corpus.name == "a.txt, b.txt"


def test_batches_are_of_the_training_part():
    corpus = read_corpus(None)
    batch = corpus.batch(np.random.default_rng(0), 3, 40)
    text = corpus.train.astype(np.uint8).tobytes()
    assert all(row.astype(np.uint8).tobytes() in text for row in batch)
    again = corpus.batch(np.random.default_rng(0), 3, 40)
    np.testing.assert_array_equal(batch, again)


def test_text_that_is_missing_or_too_short(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_corpus([tmp_path / "none.txt"])
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_corpus([tmp_path / "x.txt"])
    (tmp_path / "s.txt").write_text("short " * 30)
    short = read_corpus([tmp_path / "s.txt"])
    with pytest.raises(ValueError, match="an interval needs at least 2"):
        short.windows(128)
    with pytest.raises(ValueError, match="give no questions"):
        cloze(short, 4, 128, 16)
    (tmp_path / "r.txt").write_text("ab " * 2000)
    with pytest.raises(ValueError, match="repeats itself"):
        cloze(read_corpus([tmp_path / "r.txt"]), 4, 40, 8)
