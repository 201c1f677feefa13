"""Make examples/tiny: a tiny model of this documentation's text, in Hugging Face's layout.

  python benchmarks/tiny_model.py examples/tiny

Hardware: any CPU; minutes. Result: config.json and model.safetensors, below 300 kB: a Llama of two
layers whose tokens are bytes, trained on docs/*.md. Its words are the documentation's, its
sentences mean nothing. Other software, or another text, makes other weights.
"""

import sys
import tempfile
from pathlib import Path

from parallax.engine.optimizer import Adamw
from parallax.engine.train import train
from parallax.engine.weights import load_params
from parallax.models import huggingface
from parallax.models.config import BYTE_VOCAB, ModelConfig
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import data_parallel
from parallax.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ModelConfig(
    name="tiny", num_layers=2, d_model=64, num_heads=8, num_kv_heads=8, head_dim=8, d_ff=64,
    vocab_size=BYTE_VOCAB, mlp="gated", dtype="float32", max_seq_len=1024, tie_embeddings=True,
)  # fmt: skip
STEPS, BATCH, SEQ_LEN = 2000, 32, 128


def main(folder: str) -> None:
    pages = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "api.md"]

    def show(step: int, figures) -> None:
        if step % 100 == 0:
            print(f"step {step} of {STEPS}: loss {figures['loss']:.3f}", flush=True)

    with tempfile.TemporaryDirectory() as run:
        train(
            CONFIG, pages, run, steps=STEPS, batch=BATCH, seq_len=SEQ_LEN, save_every=STEPS,
            optimizer=Adamw(learning_rate=5e-3), remat="none", on_step=show,
        )  # fmt: skip
        strategy = data_parallel(1)
        mesh = strategy.mesh.build()
        sharded = ShardedTransformer(CONFIG, strategy, Workload(1, 1))
        huggingface.save(folder, sharded, load_params(Path(run), sharded, mesh))


if __name__ == "__main__":
    main(*sys.argv[1:])
