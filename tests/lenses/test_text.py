"""Text as tokens: any UTF-8 file, with its problems named."""

import numpy as np
import pytest

from parallax.lenses.text import DEFAULT_TEXT, byte_tokens, line_segments, read_text


def test_default_is_real_text_and_enough_of_it():
    data, name = read_text(None, 100_000)
    assert name == DEFAULT_TEXT
    assert len(data) >= 100_000
    assert b"import" in data


def test_a_short_file_is_repeated(tmp_path):
    path = tmp_path / "text"
    path.write_text("añb")
    data, name = read_text(path, 10)
    assert name == str(path)
    assert data.startswith("añb".encode() * 2)
    np.testing.assert_array_equal(byte_tokens(data, 2, 4), [[97, 195, 177, 98]] * 2)


BAD = {"missing": (None, "No such file"), "empty": (b"", "is empty"), "latin": (b"a\xe9b", "not UTF-8 at byte 1")}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(name, tmp_path):
    content, message = BAD[name]
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(path, 1)


def test_segments_start_documents_and_padding():
    tokens = byte_tokens(b"a\nb\nc\nd\ne\n" * 4, 2, 20)
    segments = line_segments(tokens)
    assert (segments[0, -2:] == 0).all()
    assert (segments[1] > 0).all()
    assert len(np.unique(segments)) > 3
    assert (np.diff(segments[1]) >= 0).all()
