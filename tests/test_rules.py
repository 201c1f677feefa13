"""Rules: literal PartitionSpecs, and the three checks with their messages."""

import re

import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from parallax.models.transformer import abstract_transformer
from parallax.programs.parameters import mesh_entry, param_specs
from parallax.rules import LOGICAL_AXES, Rules, check_divides
from parallax.strategies import data_parallel, ring_sequence, tensor_pipeline
from tests.strategies.cases import SMALL


def flat_specs(strategy):
    specs = param_specs(abstract_transformer(SMALL)[1], strategy)
    return {"/".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(specs)}


def test_tensor_pipeline_places_parameters():
    assert flat_specs(tensor_pipeline(8, 2)) == {
        "final_norm/scale": P(None),
        "layers/attention/k_DGK": P("stage", None, "tensor", None),
        "layers/attention/out_HKD": P("stage", "tensor", None, None),
        "layers/attention/q_DHK": P("stage", None, "tensor", None),
        "layers/attention/v_DGK": P("stage", None, "tensor", None),
        "layers/attention_norm/scale": P("stage", None),
        "layers/mlp/down_FD": P("stage", "tensor", None),
        "layers/mlp/up_DF": P("stage", None, "tensor"),
        "layers/mlp_norm/scale": P("stage", None),
        "tokens_VD": P(None, "tensor"),
        "unembed_DV": P(None, ("stage", "tensor")),
    }


@pytest.mark.parametrize("strategy", [ring_sequence(16), data_parallel(16)], ids=lambda s: s.name)
def test_sequence_and_data_replicate_parameters(strategy):
    assert all(entry is None for spec in flat_specs(strategy).values() for entry in spec)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown logical axis 'mpl'.*Known: embed, heads"):
        Rules().axes("mpl")
    with pytest.raises(ValueError, match="Rules.replace: unknown logical axis 'mpl'"):
        Rules().replace(mpl="tensor")
    with pytest.raises(ValueError, match="Rules.decode: unknown logical axis 'x'"):
        Rules(decode=(("x", None),))


def test_mesh_axis_used_twice():
    rules = Rules(heads="tensor", mlp="tensor")
    message = "'heads' and 'mlp' of one array both map to mesh axis 'tensor'"
    with pytest.raises(ValueError, match=message):
        rules.spec(("heads", "mlp"))


def test_sharded_weights_yield_to_other_dims():
    rules = Rules(embed=("data", "expert"), expert="expert", lookup="tensor")
    assert rules.spec(("expert", "embed", "mlp")) == (("expert",), ("data",), ())
    assert rules.spec((None, ("lookup", "embed"))) == ((), ("tensor", "data", "expert"))
    assert rules.spec(("mlp", "embed")) == ((), ("data", "expert"))


def test_the_optimizer_shards_further():
    rules = Rules(act_batch="data", optimizer={"embed": "data"})
    assert rules.spec(("embed",)) == ((),)
    assert rules.spec(("embed",), "optimizer") == (("data",),)


def test_size_not_divisible_in_the_words_of_the_style():
    message = (
        "Strategy 'tensor_pipeline': params/mlp/up dim 1 ('mlp', size 1000) maps to mesh axis "
        "'tensor' (size 16), but 16 does not divide 1000. Use a multiple of 16, or map "
        "'mlp' to None."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_divides(
            1000, ("tensor",), {"tensor": 16}, name="mlp",
            where="Strategy 'tensor_pipeline': params/mlp/up dim 1",
        )  # fmt: skip


def test_foreign_axes_and_phases():
    rules = Rules(act_seq="seq", decode={"act_seq": None}, extra={"channels": ("data", "tensor")})
    assert rules.axes("channels") == ("data", "tensor")
    assert rules.axes("act_seq", "prefill") == ("seq",)
    assert rules.axes("act_seq", "decode") == ()
    assert "act_seq      -> None   (decode)" in str(rules)


@given(st.dictionaries(st.sampled_from(LOGICAL_AXES), st.sampled_from(["tensor", "seq"])))
def test_spec_uses_a_mesh_axis_once_or_raises(mapping):
    rules, names = Rules(**mapping), tuple(mapping)
    if len(set(mapping.values())) == len(mapping):
        assert [mesh_entry(a) for a in rules.spec(names)] == list(mapping.values())
    else:
        with pytest.raises(ValueError, match="both map to mesh axis"):
            rules.spec(names)
