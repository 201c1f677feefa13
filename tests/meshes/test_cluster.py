"""Clusters: names, positions, links, and figures that agree with the target configs."""

import dataclasses
import re

import pytest

from parallax.meshes.cluster import CLUSTERS, DEFAULT_CLUSTER, cluster, of_size, on_network, scaled
from parallax.meshes.gpus import GPUS
from parallax.meshes.networks import NETWORKS


def test_default_is_two_nodes_of_eight_h100():
    found = cluster()
    assert found.name == DEFAULT_CLUSTER == "h100_2x8"
    assert (found.devices, found.nodes, found.topology) == (16, 2, "1x2x8")
    assert found.usable_bytes == int(0.92 * 84_942_979_072)


@pytest.mark.parametrize("name", CLUSTERS)
def test_named_clusters_have_sixteen_gpus(name):
    assert cluster(name) is CLUSTERS[name]
    assert cluster(name).name == name
    assert cluster(name).devices == 16


def test_any_number_of_nodes():
    found = cluster("h200_32x8")
    assert (found.name, found.gpu, found.devices) == ("h200_32x8", GPUS["h200"], 256)
    assert cluster("a100_1x8").topology == "1x1x8"


def test_a_gpus_name_may_have_underscores(monkeypatch):
    monkeypatch.setitem(GPUS, "h100_pcie", dataclasses.replace(GPUS["h100"], name="h100_pcie"))
    assert cluster("h100_pcie_4x8").nodes == 4
    assert cluster("h100_pcie_1x2").devices == 2


@pytest.mark.parametrize("name", ["h100", "v100_2x8", "h100_0x8", "h100_2x16", "H100_2x8", ""])
def test_unknown_name_lists_the_choices(name):
    with pytest.raises(ValueError, match=r"unknown cluster .*h100_2x8.*<gpu>_<nodes>x8"):
        cluster(name)


def test_a_cluster_of_another_size_is_one_that_exists():
    base = cluster("h100_2x8")
    found = {n: of_size(base, n) for n in (1, 6, 9, 12, 16, 24)}
    assert found == {1: "h100_1x1", 6: "h100_1x6", 9: "", 12: "", 16: "h100_2x8", 24: "h100_3x8"}
    assert all(cluster(name).devices == n for n, name in found.items() if name)


def test_links_follow_the_nodes():
    two_nodes, one_domain = cluster("h100_2x8"), cluster("h100_nvl16")
    assert [two_nodes.node_of(p) for p in (0, 7, 8, 15)] == [0, 0, 1, 1]
    assert two_nodes.link_between(0, 7) == "nvlink"
    assert two_nodes.link_between(7, 8) == "nic"
    assert two_nodes.link_bytes_per_s(8, 15) == 450e9
    assert two_nodes.link_bytes_per_s(15, 0) == 50e9
    assert one_domain.link_bytes_per_s(15, 0) == 450e9


def test_refused_positions():
    with pytest.raises(ValueError, match=r"no GPU at position 16\. Use 0 to 15"):
        cluster().node_of(16)
    with pytest.raises(ValueError, match="position 3 given twice"):
        cluster().link_between(3, 3)


def test_peak_flops():
    gpu = GPUS["h100"]
    assert gpu.peak_flops("bfloat16") == gpu.peak_flops("float16") == 989e12
    assert gpu.peak_flops("int8") == 2 * gpu.peak_flops("bfloat16")
    with pytest.raises(ValueError, match="no peak rate for dtype 'int4'"):
        gpu.peak_flops("int4")


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_figures_are_those_of_the_target_config(gpu):
    fields = dict(re.findall(r'^\s*(\w+): "?([^"\n]+)"?$', gpu.target_config(), re.MULTILINE))
    assert int(fields["device_memory_size"]) == gpu.memory_bytes
    assert int(fields["l2_cache_size"]) == gpu.l2_bytes
    assert int(fields["core_count"]) == gpu.sm_count
    assert int(fields["shared_memory_per_core"]) == gpu.smem_bytes
    assert float(fields["memory_bandwidth"]) == gpu.hbm_bytes_per_s
    assert fields["name"] == fields["device_description_str"] == gpu.device_kind
    major, minor = gpu.compute_capability
    # The compiler takes an unknown capability without a word: compiling would not show it.
    (compiled_for,) = re.findall(r"cuda_compute_capability {([^}]*)}", gpu.target_config())
    stated = dict(re.findall(r"(\w+): (\w+)", compiled_for))
    assert (int(stated["major"]), int(stated.get("minor", 0))) == (major, minor)
    assert fields["platform_version"].rstrip("a") == f"Compute Capability {major}.{minor}"


def test_target_config_with_another_memory_size():
    gpu = GPUS["h100"]
    changed = gpu.target_config(memory_bytes=10**15)
    assert "device_memory_size: 1000000000000000\n" in changed
    assert changed.replace("1000000000000000", str(gpu.memory_bytes)) == gpu.target_config()


def test_a_name_may_end_in_a_network():
    named = cluster("h100_4x8@efa_400")
    assert (named.name, named.network) == ("h100_4x8@efa_400", "efa_400")
    assert named.nic_bytes_per_s == NETWORKS["efa_400"].nic_bytes_per_s == 6.25e9
    assert (named.nodes, named.gpu) == (4, GPUS["h100"])
    assert cluster("h100_4x8").network == ""
    assert on_network(cluster("h100_4x8"), "efa_400") == named
    assert on_network(named, "efa_400") is named
    assert on_network(named, None) is named
    assert scaled(named, 16) == cluster("h100_2x8@efa_400")


def test_a_network_may_have_a_bandwidth_of_its_own():
    named = cluster("h100_4x8@efa:25GB")
    assert (named.name, named.network, named.nic_bytes_per_s) == ("h100_4x8@efa:25GB", "efa", 25e9)
    assert on_network(cluster("h100_4x8"), "efa:25GB") == named
    assert scaled(named, 16) == cluster("h100_2x8@efa:25GB")
    with pytest.raises(ValueError, match="is on network 'efa', not 'efa:50GB'"):
        on_network(named, "efa:50GB")
    with pytest.raises(ValueError, match="network 'fast': expected bytes such as 50MB"):
        cluster("h100_4x8@efa:fast")


def test_a_network_that_is_unknown_or_another_is_refused():
    with pytest.raises(ValueError, match=r"unknown network 'ether'. Use one of: efa, .*, roce"):
        cluster("h100_2x8@ether")
    with pytest.raises(ValueError, match="unknown network ''"):
        cluster("h100_2x8@")
    with pytest.raises(ValueError, match="unknown network 'ether'"):
        dataclasses.replace(cluster(), network="ether")
    with pytest.raises(ValueError, match="is on network 'efa', not 'roce'. Name one"):
        on_network(cluster("h100_2x8@efa"), "roce")
