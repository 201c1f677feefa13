"""The public surface is exactly what docs/api.md lists."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import parallax as px
from parallax.experiments.__main__ import EXPERIMENTS
from parallax.experiments.flag_tables import with_tables
from parallax.experiments.launch import command_module
from parallax.requests.option import described

API = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def rows(heading):
    """First column of the table under a heading."""
    section = API.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


def test_every_public_name_is_documented_and_there():
    assert [name.removeprefix("px.") for name in rows("Python")] == px.__all__
    assert sorted(px.__all__) == sorted(set(px.__all__))
    for name in px.__all__:
        assert getattr(px, name) is not None
    assert set(px.__all__) <= set(dir(px))


def test_every_kernel_name_is_there():
    names = rows("Kernels")
    assert len(names) > 8
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), name


def test_the_example_of_kernels_runs_on_a_cpu():
    (code,) = re.findall(r"<!-- example:cpu -->\n```python\n(.*?)```", API, re.DOTALL)
    found: dict = {}
    exec(code, found)
    q, k, v = found["q"], found["k"], found["v"]
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.nn.dot_product_attention(q, k, v)
    assert jnp.allclose(found["out"], expected, atol=0.02)
    assert [x.shape for x in (found["dq"], found["dk"], found["dv"])] == [q.shape, k.shape, v.shape]
    assert jnp.isfinite(found["value"])
    assert [x.shape for x in found["gradients"]] == [q.shape, k.shape, v.shape]
    assert found["both"].shape == (2, 1, 8, 64)
    assert (found["y"].shape, found["y"].dtype) == ((16, 128), jnp.float32)


def test_no_public_name_is_shadowed_by_a_module():
    """Importing a module binds its name on the package: a function would be gone."""
    folder = Path(px.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.stem != "__init__"}
    shadowed = {name for name in px.__all__ if name in modules}
    assert shadowed == {name for name, home in px._SURFACE.items() if home == ""}


def test_tables_of_flags_are_the_commands_own():
    assert with_tables(API) == API, "run python -m parallax.experiments.flag_tables"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_flag_is_documented_with_its_default(name):
    section = API.split(f"## `parallax {name}`\n")[1].split("\n## ")[0]
    table = dict(re.findall(r"^\| `--([a-z0-9_]+)` \| ([^|]*) \|", section, re.MULTILINE))
    listed = list(described(command_module(name).Flags))
    assert list(table) == [one.flag for one in listed]
    for one in listed:
        is_unset = one.default is None or one.default is False or one.default == ()
        shown = "" if is_unset else f"`{one.default}`"
        assert table[one.flag].strip() == shown
        assert one.option.help


def test_every_experiment_is_documented():
    documented = set(re.findall(r"^## `parallax ([a-z0-9_]+)`", API, re.MULTILINE))
    assert set(EXPERIMENTS) == documented - {"list"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = px.nothing
