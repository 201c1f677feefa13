"""Generation of text from text: a model and its tokenizer under a strategy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx

from parallax.engine.generate import Generation, Generator, check_prompts
from parallax.engine.sampling import Sampling
from parallax.engine.weights import find_tokenizer, load_params
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import DType, ModelConfig
from parallax.models.huggingface import Tokenizer
from parallax.programs.cache import batch_multiple
from parallax.programs.sharded_model import ShardedTransformer
from parallax.requests.generate import GenerateRequest
from parallax.requests.naming import resolve_model, resolve_strategy
from parallax.strategy import Strategy
from parallax.workload import Workload

OnText = Callable[[int, str], None]


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
    """Continue prompts under a strategy, on this process's devices.

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
      Texts, tokens, and times as MLPerf defines them.

    Raises:
      ValueError: a name is unknown, a prompt is empty or too long, or a size does not divide.

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
    sampling = Sampling(request.temperature, request.top_k, request.top_p, request.seed)
    config, folder = resolve_model(
        request.model, dtype=request.dtype, small=request.small, compression=request.compression
    )
    strategy = resolve_strategy(request.strategy, request.mesh, len(jax.devices()))
    tokenizer = find_tokenizer(config, folder)
    if tokenizer is None:
        raise ValueError(
            f"model '{config.name}' has no weights and no tokenizer. Use small=True (--small), "
            "whose tokens are bytes, or a folder with weights."
        )
    encoded = [tokenizer.encode(text) for text in request.prompts]
    given = request.stop_tokens
    stops = tokenizer.stop_tokens if given is None else tuple(given)
    check_prompts(config, encoded, request.max_new_tokens, request.cache_len, stops)
    generator = make_generator(config, folder, strategy, on_progress)
    streams = [_Stream(tokenizer) for _ in request.prompts]

    def on_token(prompt: int, token: int) -> None:
        if piece := streams[prompt].add(token):
            on_text(prompt, piece)

    on_progress(f"compiling prefill and decoding step: {strategy.name}, mesh {strategy.mesh}")
    generation = generator(
        encoded,
        max_new_tokens=request.max_new_tokens,
        sampling=sampling,
        stop_tokens=stops,
        cache_len=request.cache_len,
        on_token=on_token,
    )
    for prompt, stream in enumerate(streams):
        if piece := stream.rest():
            on_text(prompt, piece)
    continuations = generation.continuations
    return GeneratedText(tuple(tokenizer.decode(list(c.tokens)) for c in continuations), generation)


def make_generator(
    config: ModelConfig,
    folder: Path | None,
    strategy: Strategy,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Generator:
    """Make a Generator with a folder's weights or, without a folder, random ones (seed 0)."""
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    length = strategy.split().count("act_seq", "act_norm_seq")
    sharded = ShardedTransformer(config, strategy, Workload(batch_multiple(strategy), length))
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
