"""The codec: values come back as they went out, and nothing else is read."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import pytest

from parallax.codec import FileFormat, decode, encode, later, number, pairs, tagged_union
from parallax.meshes.mesh import MeshSpec


class Shape(Protocol):
    pass


@dataclass(frozen=True)
class Round:
    radius: float


@dataclass(frozen=True)
class Framed:
    inner: Shape
    width: int = 1


tagged_union(Shape, "shape", {"round": Round, "framed": Framed})


@dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...]
    formats: tuple[str, str] | None = None
    axis: str | tuple[str, ...] | None = None
    level: Literal["low", "high"] = "low"

    def __post_init__(self):
        if not self.name:
            raise ValueError("name is empty. Give one.")


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    by_name: Mapping[str, Part]
    shape: Shape
    mesh: MeshSpec
    exact: bool
    ratio: float
    rules: Mapping[str, str] | tuple[tuple[str, str], ...] = pairs()
    added: int = later(3)
    rare: str | None = later(None, omit=True)


PART = Part("a", (1, 2), ("int8", "int4"), ("seq", "node"), "high")
WHOLE = Whole(
    (PART, Part("b", ())), {"c": Part("c", (), axis="seq")}, Framed(Framed(Round(0.5))),
    MeshSpec({"seq": 4}), True, 2.0, (("mlp", "seq"),),
)  # fmt: skip
FILE = FileFormat(Whole, "whole", "whole_version", 2, "Make it again.")


def test_what_a_file_holds():
    data = FILE.encode(WHOLE)
    assert list(data)[:3] == ["whole_version", "parts", "by_name"]
    assert data["parts"][0] == {
        "name": "a", "sizes": [1, 2], "formats": ["int8", "int4"], "axis": ["seq", "node"],
        "level": "high",
    }  # fmt: skip
    assert data["shape"] == {
        "shape": "framed", "width": 1,
        "inner": {"shape": "framed", "width": 1, "inner": {"shape": "round", "radius": 0.5}},
    }  # fmt: skip
    assert (data["mesh"], data["rules"]) == ("seq=4", {"mlp": "seq"})
    assert "rare" not in data


def test_it_comes_back(tmp_path):
    FILE.save(WHOLE, tmp_path / "whole.json")
    found = FILE.load(tmp_path / "whole.json")
    assert found.shape == WHOLE.shape
    assert encode(found) == encode(WHOLE)
    assert found.parts == WHOLE.parts


def test_what_came_later_may_be_missing_and_whole_numbers_are_floats():
    data = FILE.encode(WHOLE) | {"ratio": 2}
    del data["added"]
    found = FILE.decode(json.loads(json.dumps(data)))
    assert (found.added, found.ratio, type(found.ratio)) == (3, 2.0, float)


WRONG = {
    "whole_version": (3, "whole_version is 3, this Parallax reads 2. Make it again."),
    "more": (1, "missing fields [], unknown fields ['more']"),
    "exact": (1, "exact: expected bool, got 1."),
    "ratio": (float("nan"), "ratio: expected float, finite, got nan."),
    "added": (3.0, "added: expected int, got 3.0."),
    "parts": ({}, "parts: expected a list, got dict."),
    "by_name": ([], "by_name: expected an object, got list."),
    "mesh": ("seq=x", "mesh: "),
    "shape": ({"shape": "square"}, "shape: expected a 'shape' of round, framed; got "),
    "rules": ({"mlp": 3}, "rules.mlp: expected str, got 3."),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_one_line_with_its_path(name):
    value, says = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        FILE.decode(FILE.encode(WHOLE) | {name: value}, "file whole.json")
    said = str(error.value)
    assert said.startswith("file whole.json: ")
    assert said.endswith("Make it again.")
    assert "\n" not in said


PARTS = {
    "name": ("", "parts.0: name is empty. Give one."),
    "sizes": ([1, True], "parts.0.sizes.1: expected int, got True."),
    "formats": (["a"], "parts.0.formats: expected 2 values, got 1."),
    "axis": (3, "parts.0.axis: expected str, got 3."),
    "level": ("middle", "parts.0.level: expected one of low, high; got 'middle'."),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_path_goes_down(name):
    value, says = PARTS[name]
    data = FILE.encode(WHOLE)
    data["parts"][0][name] = value
    with pytest.raises(ValueError, match=re.escape(says)):
        FILE.decode(data)


def test_a_missing_field_has_no_default():
    data = encode(PART)
    del data["level"]
    with pytest.raises(ValueError, match=r"here: missing fields \['level'\]"):
        decode(Part, data, "here")


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No such file"), ("{", "not JSON"), ("[]", "not a whole: expected an object"),
     ("{}", r"missing fields \['whole_version'\]"), ("[" * 100_000, "not JSON")],
)  # fmt: skip
def test_no_file_of_this_kind(text, says, tmp_path):
    if text is not None:
        (tmp_path / "whole.json").write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        FILE.load(tmp_path / "whole.json")
    assert f"whole {tmp_path / 'whole.json'}: " in str(error.value)
    assert "Make it again." in str(error.value)


def test_json_has_no_infinity():
    assert number(float("inf"), "s", "modelled") == {"value": None, "unit": "s", "tag": "modelled"}


def test_importing_parallax_does_not_load_the_library_that_decodes():
    code = (
        "import parallax as px, sys; px.strategies.ring_sequence(4).to_dict(); px.compare; "
        "sys.exit('cattrs' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
