"""Generation of text from text: a model and its tokenizer under a strategy."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from parallax.distributed.agreement import agree, gather, together
from parallax.distributed.devices import check_every_process, node_notes, ordered_devices
from parallax.distributed.processes import describe, process_count
from parallax.engine.generate import Generation, Generator, check_prompts
from parallax.engine.latency import Latency
from parallax.engine.sampling import Sampling
from parallax.engine.weights import find_tokenizer, load_params
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import DType, ModelConfig
from parallax.models.huggingface import Tokenizer
from parallax.programs.cache import batch_multiple
from parallax.programs.sharded_model import ShardedTransformer
from parallax.requests.generate import GenerateRequest
from parallax.requests.naming import is_published, resolve_model, resolve_strategy
from parallax.strategies.dividing import sharded_over
from parallax.strategy import Strategy
from parallax.workload import Workload

OnText = Callable[[int, str], None]
# A process is named if it takes this many times as long as process 0.
_SLOWER = 1.1


@dataclass(frozen=True)
class GeneratedText:
    """The texts that `generate` returns.

    Attributes:
      texts: the continuation of each prompt.
      generation: the tokens, times and notes.
    """

    texts: tuple[str, ...]
    generation: Generation


def generate(
    model: str | Path | ModelConfig,
    prompts: str | Sequence[str],
    *,
    strategy: str | Strategy | None = None,
    mesh: str | MeshSpec | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_tokens: Sequence[int] | None = None,
    cache_len: int | None = None,
    dtype: DType | None = None,
    small: bool = False,
    compression: str | tuple[str, str] | None = None,
    on_text: OnText = lambda prompt, text: None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> GeneratedText:
    """Continue prompts under a strategy, on the devices of all processes.

    After `px.initialize` all processes have to call it, with the same arguments.

    Args:
      model: a folder with config.json, *.safetensors and tokenizer.json; the folder of a training
        run, whose newest checkpoint is taken; or a paper's name or a ModelConfig of 256 tokens,
        with random weights.
      prompts: one text or several, of any lengths.
      strategy, mesh: as `parallax compare` takes them; None is one device. Without a mesh a named
        strategy fills the devices.
      max_new_tokens: the most new tokens per prompt.
      temperature, top_k, top_p, seed: see `Sampling`; temperature 0 is greedy.
      stop_tokens: ids that end a text; None takes the tokenizer's own.
      cache_len: tokens that a sequence may have, prompt included; None takes what is needed.
      dtype: the dtype of parameters and activations; None takes the model's own.
      small: takes a paper's model at a laptop's width, with the same shape.
      compression: formats of the matrices, such as "int8,int8+2:4" (attention, MLP): dense weights
        are compressed when they are loaded. The function is not the dense model's.
      on_text: called with (number of the prompt, text) as text comes.
      on_progress: called with a line whenever something starts.

    Returns:
      Texts, tokens, and times as MLPerf defines them: process 0's, and the same on all processes.

    Raises:
      ValueError: a name is unknown, a prompt is empty or too long, or a size does not divide; on
        all processes if on one, and if they differ or one has no device in the mesh.

    Example:
      px.generate("folder", "Once upon a time", strategy="ring_sequence", mesh="seq=4")
    """
    request = GenerateRequest(
        model=model,
        prompts=(prompts,) if isinstance(prompts, str) else tuple(prompts),
        strategy=strategy,
        mesh=mesh,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_tokens=stop_tokens,
        cache_len=cache_len,
        dtype=dtype,
        small=small,
        compression=compression,
    )
    return run_generation(request, on_text=on_text, on_progress=on_progress)


def run_generation(
    request: GenerateRequest, *, on_text: OnText, on_progress: Callable[[str], None]
) -> GeneratedText:
    """Continue the prompts of a request, as `generate` does."""
    devices = ordered_devices()
    task = together("reading the model", lambda: _resolve(request, len(devices)))
    agree("generation", _facts(request, task))
    tokenizer, strategy = task.tokenizer, task.strategy
    generator = make_generator(task.config, task.folder, strategy, on_progress)
    streams = [_Stream(tokenizer) for _ in request.prompts]

    def on_token(prompt: int, token: int) -> None:
        if piece := streams[prompt].add(token):
            on_text(prompt, piece)

    on_progress(f"compiling prefill and decoding step: {strategy.name}, mesh {strategy.mesh}")
    generation = generator(
        task.encoded,
        max_new_tokens=request.max_new_tokens,
        sampling=task.sampling,
        stop_tokens=task.stops,
        cache_len=request.cache_len,
        on_token=on_token,
    )
    for prompt, stream in enumerate(streams):
        if piece := stream.rest():
            on_text(prompt, piece)
    latency, slowest = _latency_of_first(generation.latency)
    beyond = _beyond_trained(task, request.max_new_tokens)
    notes = (*node_notes(generator.mesh), *generation.notes, *beyond, *slowest)
    generation = replace(generation, latency=latency, notes=notes)
    continuations = generation.continuations
    return GeneratedText(tuple(tokenizer.decode(list(c.tokens)) for c in continuations), generation)


class _Task(NamedTuple):
    """What a request asks for, resolved and checked."""

    config: ModelConfig
    folder: Path | None
    strategy: Strategy
    tokenizer: Tokenizer
    encoded: list[list[int]]
    stops: tuple[int, ...]
    sampling: Sampling


def _resolve(request: GenerateRequest, devices: int) -> _Task:
    sampling = Sampling(request.temperature, request.top_k, request.top_p, request.seed)
    config, folder = resolve_model(
        request.model, dtype=request.dtype, small=request.small, compression=request.compression
    )
    strategy = resolve_strategy(request.strategy, request.mesh, devices)
    tokenizer = find_tokenizer(config, folder)
    if tokenizer is None:
        raise ValueError(
            f"model '{config.name}' has no weights and no tokenizer. Use small=True (--small), "
            "whose tokens are bytes, or a folder with weights."
        )
    encoded = [tokenizer.encode(text) for text in request.prompts]
    given = request.stop_tokens
    stops = tuple(tokenizer.stop_tokens) if given is None else tuple(given)
    check_prompts(config, encoded, request.max_new_tokens, request.cache_len, stops)
    return _Task(config, folder, strategy, tokenizer, encoded, stops, sampling)


def _beyond_trained(task: _Task, max_new_tokens: int) -> tuple[str, ...]:
    """Return a note for texts that are longer than what published weights were trained on."""
    config, folder = task.config, task.folder
    if folder is None or not is_published(folder):
        return ()
    longest = max(map(len, task.encoded))
    if longest + max_new_tokens <= config.max_seq_len:
        return ()
    return (
        f"warning: {longest} tokens of the prompt and up to {max_new_tokens} new ones are more "
        f"than the {config.max_seq_len:,} positions that '{config.name}' is made for "
        "(max_position_embeddings in its config.json): text beyond them may be worse",
    )


def _facts(request: GenerateRequest, task: _Task) -> dict[str, Any]:
    """Return what has to be the same on all processes, as JSON."""
    return {
        "prompts": list(request.prompts),
        "tokens of the prompts": [list(map(int, tokens)) for tokens in task.encoded],
        "max_new_tokens": request.max_new_tokens,
        "cache_len": request.cache_len,
        "stop_tokens": list(task.stops),
        "sampling": asdict(task.sampling),
        "model": task.config.to_dict(),
        "weights": task.folder is not None,
        "strategy": task.strategy.to_dict(),
        "float64": jax.config.jax_enable_x64,
    }


def _latency_of_first(own: Latency) -> tuple[Latency, tuple[str, ...]]:
    """Return process 0's latency, on every process, and a note that says so."""
    if process_count() == 1:
        return own, ()
    said = [json.loads(text) for text in gather("latency", json.dumps(asdict(own)))]
    first = Latency(**said[0] | {"itl_s": tuple(said[0]["itl_s"])})
    note = f"times are those of {describe(0)}"
    seconds = [latency["total_s"] for latency in said]
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    if seconds[slowest] > _SLOWER * seconds[0]:
        note += f"; the slowest is {describe(slowest)}, with {seconds[slowest]:.3g} s in all"
    return first, (note,)


def make_generator(
    config: ModelConfig,
    folder: Path | None,
    strategy: Strategy,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Generator:
    """Make a Generator with a folder's weights or, without a folder, random ones (seed 0).

    Raises:
      ValueError: a process would have no device of the mesh, or the weights cannot be loaded.
    """
    mesh = strategy.mesh.build(ordered_devices()[: strategy.mesh.size])
    check_every_process(mesh)
    sharded = sharded_over(strategy, lambda one: _shortest(config, one))
    if folder is None:
        on_progress(f"random weights of {config.name}: the text is meaningless")
        return Generator(config, strategy, sharded.init(jax.random.key(0), mesh), mesh)
    on_progress(f"loading {folder}")
    params = load_params(folder, sharded, mesh)
    if not config.tie_embeddings:
        return Generator(config, strategy, params, mesh)
    # A tied table is turned into the unembedding once, not in every step.
    unembed = jax.jit(lambda state: sharded.untie(state, mesh)["unembed_DV"])(params)
    untied = nnx.from_flat_state([*nnx.to_flat_state(params), (("unembed_DV",), unembed)])
    return Generator(sharded.untied.config, strategy, untied, mesh)


def _shortest(config: ModelConfig, strategy: Strategy) -> ShardedTransformer:
    """Return the model with the shortest prompts that a strategy takes."""
    length = strategy.split().count("act_seq", "act_norm_seq")
    return ShardedTransformer(config, strategy, Workload(batch_multiple(strategy), length))


class _Stream:
    """A decoder of streamed tokens; a piece of text is emitted once its last character is whole."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.tokens, self.said = tokenizer, [], ""

    def add(self, token: int) -> str:
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens)
        return "" if text.endswith("\ufffd") else self._new(text)

    def rest(self) -> str:
        return self._new(self.tokenizer.decode(self.tokens))

    def _new(self, text: str) -> str:
        if not text.startswith(self.said):  # the tokenizer rewrites what came before
            return ""
        piece, self.said = text[len(self.said) :], text
        return piece
