"""What `parallax calibrate` wrote reaches every modelled number that a command prints."""

import dataclasses

import pytest

from parallax.commands.plan import plan
from parallax.cost import rates_of
from parallax.experiments.__main__ import EXPERIMENTS
from parallax.experiments.launch import command_module
from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.papers.modelled import closed_form_on
from parallax.requests.option import described
from parallax.studies.regimes.layerwise import Grid, study


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A file of an H100 whose memory is a hundred times slower."""
    shipped = rates_of("h100")
    path = tmp_path_factory.mktemp("rates") / "rates.json"
    dataclasses.replace(
        shipped, name="slow", memory_bytes_per_s=shipped.memory_bytes_per_s / 100,
        l2_bytes_per_s=shipped.l2_bytes_per_s / 100,
    ).save(path)  # fmt: skip
    return path


def test_the_commands_that_model_take_rates():
    """Not deploy, whose modelled H100 is the paper's; pairs and the others measure."""
    found = {
        n for n in EXPERIMENTS if "rates" in {f.flag for f in described(command_module(n).Flags)}
    }
    assert found == {
        "compare", "plan", "describe", "validate", "regimes", "inspect", "explain", "claims",
    }  # fmt: skip


def test_rates_reach_the_claims_audit(slow):
    paper, where = PAPERS["ring_sp"], cluster("h100_2x8")
    rates = type(rates_of("h100")).load(slow)
    with_slow = closed_form_on(where, rates)(paper, "ring_sequence", "prefill")
    shipped = closed_form_on(where)(paper, "ring_sequence", "prefill")
    assert with_slow is not None
    assert shipped is not None
    assert with_slow.value < 0.8 * shipped.value


def test_rates_reach_the_regimes(slow):
    grid = Grid(("h100_2x8",), ("decode",), ("MHA",), ("float16",), ("xla",), (16,), (1024,), (16,))
    (found,), (shipped,) = study(grid, rates=slow), study(grid)
    assert all(found.seconds[name] > 1.5 * s for name, s in shipped.seconds.items())
    with pytest.raises(ValueError, match="are for GPU 'h200', cluster h100_2x8 has 'h100'"):
        study(grid, rates=rates_of("h200"))


def test_rates_reach_the_plan_and_have_to_be_of_its_gpu(slow):
    options: dict = {"batch": 16, "prompt_len": 1024, "output_len": 8, "compile_top": 0}
    found, shipped = (plan("ring_sp", **options, rates=r).winner for r in (slow, None))
    assert found is not None
    assert shipped is not None
    assert found.timing.tokens_per_s.value < 0.8 * shipped.timing.tokens_per_s.value
    with pytest.raises(ValueError, match="are for GPU 'h100', cluster h200_2x8 has 'h200'"):
        plan("ring_sp", **options, cluster="h200_2x8", rates=slow)
