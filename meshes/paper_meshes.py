"""The 16-device meshes that the papers describe."""

from parallax.meshes.mesh import MeshSpec

TENSOR_8_STAGE_2 = MeshSpec({"stage": 2, "tensor": 8})
HEADS_4_SLICES_4 = MeshSpec({"head_group": 4, "head_slice": 4})
RING_16 = MeshSpec({"seq": 16})
EXPERT_16 = MeshSpec({"expert": 16})
STAGE_16 = MeshSpec({"stage": 16})

PAPER_MESHES = {
    "8x2": TENSOR_8_STAGE_2,
    "4x4": HEADS_4_SLICES_4,
    "ring_16": RING_16,
    "expert_16": EXPERT_16,
    "stage_16": STAGE_16,
}
