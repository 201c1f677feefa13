"""The derived bytes of weights, activations and caches, before and after compression."""

from parallax.models.config import ModelConfig
from parallax.models.parameters import layer_matrices
from parallax.papers.paper import Given

MB, GB, MIB, GIB = 1e6, 1e9, 2.0**20, 2.0**30
# Under 2:4 half the weights remain, each 8 bits and a position of 2 bits; as a share of INT8's.
INT8_2_4_SHARE = 0.5 * (8 + 2) / 8


def _attention_params(config: ModelConfig) -> float:
    return float(sum(m.size for m in layer_matrices(config, "attention")))


def _mlp_params(config: ModelConfig) -> float:
    """Count the parameters of one MLP, or of one expert."""
    return float(sum(m.size // m.count for m in layer_matrices(config, "mlp")))


def _attention_mb(given: Given, *, reading: bool) -> float:
    """Count the MB of attention matrices that read the residual stream, or that do not."""
    matrices = layer_matrices(given.config, "attention")
    size = sum(m.size for m in matrices if m.reads_stream == reading)
    return size * given.config.item_bytes / MB


def qkv_mb(given: Given) -> float:
    return _attention_mb(given, reading=True)


def attention_output_mb(given: Given) -> float:
    return _attention_mb(given, reading=False)


def mlp_matrix_mb(given: Given) -> float:
    return given.config.d_model * given.config.d_ff * given.config.item_bytes / MB


def attention_mb(given: Given) -> float:
    return _attention_params(given.config) * given.config.item_bytes / MB


def mlp_mb(given: Given) -> float:
    return _mlp_params(given.config) * given.config.item_bytes / MB


def attention_int8_mb(given: Given) -> float:
    return _attention_params(given.config) / MB


def mlp_int8_sparse_mb(given: Given) -> float:
    return _mlp_params(given.config) * INT8_2_4_SHARE / MB


def norms_mb(given: Given) -> float:
    return 2 * given.config.d_model * given.config.item_bytes / MB


def norms_int8_mb(given: Given) -> float:
    return 2 * given.config.d_model / MB


def compressed_layer_mb(given: Given) -> float:
    """Count the weights alone: attention in INT8, the MLP in INT8 and 2:4 with its positions."""
    return attention_int8_mb(given) + mlp_int8_sparse_mb(given) + norms_int8_mb(given)


def printed_activations_mb(given: Given) -> float:
    """Work out the printed product, batch x length x width x bytes x 3."""
    work = given.workload
    return 3.0 * work.tokens * given.config.d_model * given.config.item_bytes / MB


def printed_layer_mb(given: Given) -> float:
    """Add up the printed lines of a layer."""
    one = ("attention QKV weights", "attention output weights", "norm weights", "activations",
           "workspace")  # fmt: skip
    return sum(given.claimed(q, "") for q in one) + 3 * given.claimed("one MLP matrix", "")


def all_printed_layers_gb(given: Given) -> float:
    return given.config.num_layers * given.claimed("uncompressed layer", "") / 1e3


def int8_cut_percent(given: Given) -> float:
    return 100 * (1 - 1 / given.config.item_bytes)


def two_of_four_percent(given: Given) -> float:
    return 100 * 2 / 4


def sparse_int8_cut_percent(given: Given) -> float:
    """Work out the saving of 2:4 on INT8 weights, with positions counted."""
    return 100 * (1 - INT8_2_4_SHARE)


def activations_cut_percent(given: Given) -> float:
    return 100 * (1 - given.claimed("final activations", "") / given.claimed("activations", ""))


def activations_after_both_cuts_mb(given: Given) -> float:
    kept = 1 - given.claimed("activation reduction by checkpointing", "") / 100
    kept *= 1 - given.claimed("further activation reduction", "") / 100
    return given.claimed("activations", "") * kept


def workspace_cut_percent(given: Given) -> float:
    return 100 * (1 - given.claimed("final workspace", "") / given.claimed("workspace", ""))


def workspace_after_cut_mb(given: Given) -> float:
    return given.claimed("workspace", "") * (1 - given.claimed("workspace reduction", "") / 100)


def l2_used_percent(given: Given) -> float:
    return 100 * given.claimed("L2 in use") / given.claimed("L2 a GPU", "")


def layer_of_l2_percent(given: Given) -> float:
    layer = given.claimed("further compressed layer")
    return 100 * layer / given.claimed("L2 a GPU", "")


def hbm_used_percent(given: Given) -> float:
    return 100 * given.claimed("HBM in use") / given.claimed("HBM a GPU", "")


def hbm_share_claimed_percent(given: Given) -> float:
    """Return the claimed use of HBM, which is what the other row's column means."""
    return given.claimed("HBM use")


def one_expert_matrix_mib(given: Given) -> float:
    return given.config.d_model * given.config.d_ff * given.config.item_bytes / MIB


def experts_a_gpu_mib(given: Given) -> float:
    """Count the weights of one expert of every layer."""
    c = given.config
    return c.num_layers * _mlp_params(c) * c.item_bytes / MIB


def all_experts_gib(given: Given) -> float:
    c = given.config
    return c.num_layers * c.num_experts * _mlp_params(c) * c.item_bytes / GIB


def all_layers_gib(given: Given) -> float:
    """Count the weights of all layers: experts, routers, attention and norms."""
    return given.config.num_layers * given.config.layer_params * given.config.item_bytes / GIB


def experts_of_a_layer_a_gpu(given: Given) -> float:
    """Count a layer's experts per GPU: a stage holds whole layers, with experts over its GPUs."""
    from parallax.strategies import build

    stage = build(given.claim.strategy).mesh["tensor"]
    return given.config.num_experts / stage


def weights_divided_by(given: Given) -> float:
    """Work out the weights over those per device: matrices and tables are split, norms are not."""
    total = given.config.num_params
    norms = (2 * given.config.num_layers + 1) * given.config.d_model
    return total / ((total - norms) / given.cluster.devices + norms)
