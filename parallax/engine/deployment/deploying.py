"""The `deploy` command: a deployment, its losses and switches, and a record of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from parallax.codec import encode
from parallax.engine.deployment.deployment import Deployment
from parallax.engine.deployment.first import first_layout
from parallax.engine.deployment.full_size import modelled_record
from parallax.engine.deployment.layout import Rule
from parallax.engine.deployment.pressure import Pressure, step_bytes
from parallax.engine.deployment.reference import unsharded_params, unsharded_tokens
from parallax.engine.deployment.stored import HostCopies
from parallax.engine.deployment.switching import Switch
from parallax.engine.deployment.trials import Trial, lose_at_random, switch_while_serving
from parallax.engine.latency import spread
from parallax.engine.layer_formats import Formats, parse_layer_formats
from parallax.engine.weights import find_tokenizer, load_params
from parallax.meshes.gpus import GPUS
from parallax.models.config import DType, ModelConfig
from parallax.papers import PAPERS
from parallax.placement import parse_budget
from parallax.programs.sharded_model import ShardedTransformer
from parallax.requests.naming import parse_compression, resolve_model, stored_model
from parallax.strategies import data_parallel
from parallax.workload import Workload

PROMPTS = ("def add(", "import jax.numpy as jnp\n", "The quick", "for i in range(")
TIMES = ("detect_s", "place_s", "move_s", "compile_s", "recompute_s", "resume_s")


@dataclass(frozen=True)
class DeployRecord:
    """The record of a deployment's run.

    Attributes:
      setup: model, devices, placement and bytes.
      texts: continuations without a loss.
      unprepared: a loss before anything was compiled ahead; None without losses.
      trials: losses at random times, with the next layouts compiled ahead.
      switches: switches of layers prepared on "device" and on "host".
      pressure: automatic switches as keys and values grow; None without such a run.
      unchanged_after_switching: whether tokens are the first run's once all layers are switched
        back.
      modelled: the same at full size on an H100.
    """

    setup: dict[str, Any]
    texts: tuple[str, ...]
    unprepared: Trial | None
    trials: tuple[Trial, ...]
    switches: dict[str, tuple[Switch, ...]]
    pressure: tuple[Switch, ...] | None
    unchanged_after_switching: bool
    modelled: dict[str, Any]

    @property
    def exact(self) -> bool:
        """Whether no request was lost and no token changed."""
        trials = (*self.trials, *([self.unprepared] if self.unprepared else []))
        lost = any(t.lost_requests or t.changed_tokens for t in trials)
        return not lost and self.unchanged_after_switching

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for deploy.json."""
        return {
            "tag": "measured; losses are simulated, devices may be virtual",
            "setup": self.setup,
            "texts": self.texts,
            "exact": self.exact,
            "losses": {
                "times": self.loss_times(),
                "unprepared": self.unprepared and _trial_dict(self.unprepared),
                "trials": [_trial_dict(t) for t in self.trials],
            },
            "switches": {
                where: {
                    "count": len(made),
                    "copied_bytes": sum(s.copied_bytes for s in made),
                    "seconds": spread([s.seconds for s in made]),
                }
                for where, made in self.switches.items()
            },
            "pressure": self.pressure and [_switch_dict(s) for s in self.pressure],
            "claimed": _claimed(),
            "modelled": self.modelled,
        }

    def loss_times(self) -> dict[str, dict[str, float]]:
        """Return the spread of each part of a recovery, in seconds."""
        recoveries = [t.recovery for t in self.trials]
        return {
            name: spread([getattr(r, name) for r in recoveries]) for name in TIMES if recoveries
        }


def deploy(
    model: str | Path | ModelConfig,
    prompts: Sequence[str] = PROMPTS,
    *,
    devices: int | None = None,
    spares: int = 0,
    device_budget: str | None = None,
    rule: Rule = "optimal",
    compression: str | None = None,
    layer_formats: Sequence[str] = (),
    stronger: str = "int8+2:4",
    max_new_tokens: int = 16,
    microbatches: int = 1,
    lose: Sequence[int] = (),
    losses: int = 0,
    switches: int = 0,
    pressure: bool = False,
    seed: int = 0,
    small: bool = False,
    dtype: DType | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> DeployRecord:
    """Deploy a model layer-wise, lose devices and switch formats while it serves.

    Args:
      model: as `px.generate` takes it, or a folder whose layers are stored in different formats.
      prompts: texts to continue.
      devices: number of this process's devices to use, spares included; None takes all.
      spares, rule: as `Deployment` takes them.
      device_budget: bytes of weights, keys and values that a device may hold: l2, smem, l2+smem (of
        an H100) or a number such as 50MB; None is no limit.
      compression, layer_formats: formats of all matrices, and those of some layers.
      stronger: formats that layers are switched to; not needed without switches.
      max_new_tokens: the most new tokens per prompt.
      microbatches: pieces of the batch.
      lose: devices to lose, in turn; empty draws them at random.
      losses: number of runs that lose a device at a random time; at least one for each of `lose`.
      switches: number of switches of layers prepared on devices, and again of layers on the host.
      pressure: adds a run in which growing keys and values fill a (modelled) cache, and layers
        switch automatically.
      seed: seed of the times of losses.
      small, dtype: the model's size and dtype.

    Raises:
      ValueError: the model cannot be deployed; the message says why.
    """
    budget = None
    if device_budget is not None:
        budget = parse_budget(device_budget, GPUS["h100"]).n_bytes
    config, folder, stored = deployed_model(model, dtype=dtype, small=small)
    tokenizer = find_tokenizer(config, folder)
    if tokenizer is None:
        raise ValueError(
            f"model '{config.name}' has no tokenizer. Use small=True (--small), whose tokens are "
            "bytes, or a folder with weights."
        )
    if stored and (layer_formats or compression or switches):
        raise ValueError(
            f"{folder}: its layers are stored compressed, without their dense weights. Leave out "
            "--compression, --layer_formats and --switches, or deploy the dense model."
        )
    strong = _pair(stronger)
    formats = stored or parse_layer_formats(config, layer_formats, parse_compression(compression))
    encoded = [tokenizer.encode(text) for text in prompts]
    here = _devices_of_this_process(devices)
    count = max(losses, len(lose))
    _check(len(here), lose, count, microbatches, max_new_tokens, bool(switches or pressure))
    rows = -(-len(prompts) // microbatches) * microbatches
    on_progress(f"placing {config.num_layers} layers on {len(here)} devices, {spares} spare")
    options: Any = {
        "batch": rows, "max_len": max(map(len, encoded)) + max_new_tokens,
        "microbatches": microbatches, "spares": spares, "budget": budget,
        "formats": formats, "rule": rule,
    }  # fmt: skip
    first_layout(config, len(here), **options)
    params = _params(config, folder, on_progress, compressed=stored is not None)
    made = Deployment(config, params, here, **options)
    on_progress("the unsharded model, for comparison")
    right = _unsharded_continuations(made, encoded, max_new_tokens)
    on_progress("compiling groups")
    served = made.generate(encoded, max_new_tokens=max_new_tokens)
    equal = None if right is None else served.continuations == right
    right = right or served.continuations
    unprepared = None
    if count:
        on_progress("a loss before anything is compiled ahead")
        unprepared = lose_at_random(made, encoded, right, max_new_tokens, 1, seed=seed)[0]
    on_progress("compiling what would run after each single loss")
    ahead_s = made.prepare()
    setup = {**_setup(made, served.latency, ahead_s, seed), "equals_unsharded": equal,
             "prompt_tokens": [len(tokens) for tokens in encoded]}  # fmt: skip
    on_progress(f"{count} losses")
    trials = lose_at_random(
        made, encoded, right, max_new_tokens, count, seed=seed, devices=lose or None, prepare=True
    )
    on_progress(f"{switches} switches")
    timed = _switches(made, encoded, max_new_tokens, strong, switches)
    relieved = _under_pressure(made, encoded, max_new_tokens, strong) if pressure else None
    again = made.generate(encoded, max_new_tokens=max_new_tokens).continuations
    paper = str(model) if small and str(model) in PAPERS else None
    return DeployRecord(
        setup=setup,
        texts=tuple(tokenizer.decode(list(c.tokens)) for c in served.continuations),
        unprepared=unprepared,
        trials=tuple(trials),
        switches=timed,
        pressure=relieved,
        unchanged_after_switching=again == right,
        modelled=modelled_record(setup, [_trial_dict(t) for t in trials], formats, strong, paper),
    )


def _devices_of_this_process(count: int | None) -> list[Any]:
    """Return the first `count` devices, None being all; raise ValueError if there are fewer."""
    devices = jax.devices()
    if count is not None and len(devices) < count:
        raise ValueError(f"{count} devices are asked for, this process has {len(devices)}.")
    return devices[:count]


def _unsharded_continuations(made: Deployment, prompts, max_new_tokens: int):
    """Return the unsharded model's continuations; None with W8A8, which it cannot compute."""
    formats = made.chain.layout.formats
    if any("w8a8" in name for pair in formats for name in pair):
        return None
    dense = unsharded_params(made.chain.host, formats)
    return unsharded_tokens(made.chain.config, dense, prompts, max_new_tokens)


def _trial_dict(trial: Trial) -> dict[str, Any]:
    recovery = encode(trial.recovery)
    return {
        **encode(trial.event),
        "device": trial.device,
        "lost_requests": trial.lost_requests,
        "changed_tokens": trial.changed_tokens,
        **{name: value for name, value in recovery.items() if name != "modelled"},
        "resume_s": trial.recovery.resume_s,
    }


def _switch_dict(made: Switch) -> dict[str, Any]:
    return {k: v for k, v in encode(made).items() if k != "modelled"}


def _claimed() -> dict[str, Any]:
    """Return the paper's claim about a switch."""
    quantity = "recovery from cache pressure"
    claim = next(c for c in PAPERS["compressed_layerwise"].claims if c.quantity == quantity)
    return {
        "tag": "claimed", "paper": "compressed_layerwise", "quantity": quantity,
        "below": float(claim.printed), "unit": claim.unit,
    }  # fmt: skip


def _check(
    devices: int, lose: Sequence[int], losses: int, microbatches: int, max_new_tokens: int,
    switching: bool,
) -> None:  # fmt: skip
    """Check what can be checked before anything is loaded."""
    if microbatches < 1:
        raise ValueError(f"microbatches must be at least 1, got {microbatches}.")
    if bad := [d for d in lose if not 0 <= d < devices]:
        raise ValueError(f"no device {bad[0]} to lose; the deployment has 0 to {devices - 1}.")
    if losses and devices < 2:
        raise ValueError("the loss of the only device cannot be recovered. Give two or more.")
    if switching and max_new_tokens < 2:
        raise ValueError(
            f"switches happen between tokens: max_new_tokens must be at least 2, got "
            f"{max_new_tokens}."
        )


def _pair(text: str) -> Formats:
    formats = parse_compression(text)
    if formats is None:
        raise ValueError(f"stronger formats {text!r}: nothing to switch to. Give int8+2:4, say.")
    return formats


def deployed_model(
    model: str | Path | ModelConfig, *, dtype: DType | None = None, small: bool = False
) -> tuple[ModelConfig, Path | None, tuple[Formats, ...] | None]:
    """Return the dense model, its folder, and the formats stored there, None if dense.

    Raises as `resolve_model` does.
    """
    stored = stored_model(model)
    if stored is None:
        return *resolve_model(model, dtype=dtype, small=small), None
    config = stored.config.replace(compression=None)
    if small or dtype not in (None, config.dtype):
        raise ValueError(
            f"{model}: weights are stored compressed for {config.dtype}, at full size. Leave out "
            "dtype and small, or deploy the dense model."
        )
    return config, Path(model), stored.formats  # pyright: ignore[reportArgumentType]


def _params(
    config: ModelConfig, folder: Path | None, on_progress, *, compressed: bool
) -> nnx.State | HostCopies:
    if compressed and folder is not None:
        on_progress(f"reading {folder}, layers as they are stored")
        return HostCopies.load(folder)
    strategy = data_parallel(1)
    mesh = strategy.mesh.build(jax.devices()[:1])
    sharded = ShardedTransformer(config, strategy, Workload(1, 1))
    if folder is not None:
        on_progress(f"loading {folder}")
        return load_params(folder, sharded, mesh)
    on_progress(f"random weights of {config.name}: the text is meaningless")
    return sharded.init(jax.random.key(0), mesh)


def _setup(made: Deployment, latency, ahead_s: float, seed: int) -> dict[str, Any]:
    chain = made.chain
    rows = []
    kinds = ("weights", "first", "last")
    held = {kind: made.device_bytes(kind) for kind in kinds}
    footprints = chain.sizes.footprints(chain.layout.formats)
    for device, group in zip(chain.layout.devices, chain.layout.groups, strict=True):
        rows.append({
            "device": device, "layers": [group.start, group.stop - 1],
            "formats": sorted({chain.layout.formats[i] for i in group}),
            "weight_bytes": held["weights"][device],
            "kv_bytes": sum(footprints[i].kv for i in group),
            "end_bytes": held["first"][device] + held["last"][device],
        })  # fmt: skip
    return {
        "model": chain.config.to_dict(), "platform": jax.devices()[0].platform,
        "devices": len(chain.memories), "spares": list(made.spares), "microbatches_of": chain.rows,
        "max_len": chain.slots, "seed": seed, "layout": rows, "host_bytes": chain.host.n_bytes,
        "compile_ahead_s": ahead_s, "new_tokens": latency.new_tokens,
        "tpot_s": latency.tpot_s, "ttft_s": latency.ttft_s,
    }  # fmt: skip


def _switches(
    made: Deployment, prompts, max_new_tokens: int, strong: Formats, count: int
) -> dict[str, tuple[Switch, ...]]:
    """Run switches with even layers prepared on their devices, odd ones on the host."""
    if not count:
        return {}
    layers = range(made.chain.config.num_layers)
    switches, parts = {}, {"device": layers[::2], "host": layers[1::2]}
    made.prepare_switch(parts["device"], strong, "device")
    made.prepare_switch(parts["host"], strong, "host")
    made.prepare()
    for where, mine in parts.items():
        if mine:
            done = switch_while_serving(made, prompts, max_new_tokens, mine, count + count % 2)
            switches[where] = tuple(done[:count])
    return switches


def _under_pressure(
    made: Deployment, prompts, max_new_tokens: int, strong: Formats
) -> tuple[Switch, ...]:
    """Serve with a cache that the fullest device's step outgrows half way, so that layers switch.

    All layers are switched back afterwards.
    """
    chain, low = made.chain, Pressure.low
    made.prepare_switch(
        [i for i in range(chain.config.num_layers) if i not in chain.prepared], strong
    )
    made.prepare()
    half = sum(map(len, prompts)) + len(prompts) * max(1, max_new_tokens // 2)
    fullest = max(step_bytes(chain, stage, half) for stage in range(len(chain.layout.groups)))
    pressure = Pressure(low=low, patience=1, cache_bytes=max(1, int(low * fullest)))
    served = made.generate(prompts, max_new_tokens=max_new_tokens, pressure=pressure)
    for layer, kept in chain.prepared.items():
        if chain.layout.formats[layer] != kept.mild:
            made.switch(layer)
    return served.switches
