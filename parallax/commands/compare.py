"""The `compare` command: strategies side by side through the lenses, a paper's or one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from parallax.commands.comparing import run_comparisons
from parallax.commands.resolve import resolve
from parallax.cost import Rates
from parallax.lenses.child import Progress
from parallax.meshes.mesh import MeshSpec
from parallax.models.config import ModelConfig
from parallax.papers import PAPERS
from parallax.parallel.layer_parts import ScheduleName
from parallax.parallel.remat import Remat
from parallax.parallel.sharded_weights import Gather
from parallax.report import Report
from parallax.requests.compare import REPEATS, CompareRequest
from parallax.rules import Phase
from parallax.strategy import Strategy


def compare(
    paper: str | None = None,
    *,
    model: str | ModelConfig | None = None,
    strategies: Sequence[str | Strategy] | None = None,
    mesh: str | MeshSpec | None = None,
    batch: int | None = None,
    seq_len: int | None = None,
    microbatches: int | None = None,
    dtype: str | None = None,
    compression: str | tuple[str, str] | None = None,
    kernels: str | None = None,
    cluster: str | None = None,
    network: str | None = None,
    rates: Rates | str | Path | None = None,
    lenses: Sequence[str] | None = None,
    budget: str | None = None,
    packed: bool = False,
    small: bool = False,
    phase: Phase = "prefill",
    remat: Remat = "layer",
    shard_weights: str | Sequence[str] | None = None,
    gather: Gather | None = None,
    shard_optimizer: str | Sequence[str] | None = None,
    schedule: ScheduleName | None = None,
    virtual_stages: int | None = None,
    text: str | None = None,
    repeats: int = REPEATS,
    profile: str | Path | Literal[False] = False,
    sweep: str | None = None,
    on_progress: Progress = lambda line: None,
) -> Report:
    """Compare strategies: exact? fits? what moves? how fast at best?

    Args:
      paper: a name of PAPERS; sets model, strategies, batch, seq_len, dtype and cluster, and adds
        the paper's claims. Any other argument overrides it.
      model: a name of PAPERS (its model), or a ModelConfig.
      strategies: names of STRATEGIES, paths of strategy files (.json), or Strategy values.
      mesh: mesh axes of the named strategies, such as "stage=2,tensor=8"; None fills the cluster.
      batch, seq_len: sequences over all devices, and tokens of each.
      microbatches: number per device. None takes the paper's, lowered to what divides the
        device's sequences; the report prints what each strategy ran with.
      dtype: the dtype of parameters and activations.
      compression: formats that matrices are stored in, such as "int8,int8+2:4" (attention, MLP).
        The function is not the dense model's; its error against dense is measured.
      kernels: the implementation that compile and predict use where it applies: "mosaic", our
        kernels for Hopper, validated or not; "cudnn", the library's attention of whole sequences;
        None, validated kernels, else XLA's. On CPUs XLA computes the same.
      cluster: a cluster name.
      network: network between its nodes, by name; the same as "@NAME" behind the cluster's.
      rates: constants of the cluster's GPU, or a file that `parallax calibrate` wrote; None takes
        those shipped.
      lenses: some of verify, compile, predict, measure.
      budget: bytes per device that its layers have to fit in: l2, smem, l2+smem, hbm, hbm+kv, or a
        number such as 50MB. The report then says which layers go where, and what is missing.
      packed: several documents per sequence, told apart by segment ids.
      small: compiles and predicts the small model that verify runs, instead of the full size.
      phase: what is compiled and predicted: "prefill", a forward pass to last-position logits;
        "decode", a new token of every sequence after prompts of seq_len tokens; or "train", a step
        of AdamW with float32 parameters.
      remat: what a training step recomputes: "none", "attention" or "layer".
      shard_weights: mesh axes over which all weights are sharded, among those that split the
        tokens, as a list or joined by commas; "auto" is all of these.
      gather: when sharded weights are gathered: "layer" or "step".
      shard_optimizer: mesh axes over which the optimizer's state is sharded too (ZeRO-1).
      schedule, virtual_stages: the order of passes in a pipeline's training step; see `Pipeline`.
      text: a UTF-8 file for verify and measure.
      repeats: timed steps of the measure lens.
      profile: a folder for traces of further steps of the measure lens, one folder per strategy in
        it; the report then has measured against modelled time, operation by operation.
      sweep: an axis (devices, seq_len or batch) and its values, "seq_len:4k..128k" (doubling) or
        "devices:4,16": compile and predict run at each value instead of once, and verify only if
        `lenses` names it. `devices` rebuilds cluster and strategies; the whole batch stays.
      on_progress: called with a line whenever something starts.

    Returns:
      A Report. A strategy that cannot run is in it with the reason, and makes its exit status 1.

    Raises:
      ValueError: an unknown name, an argument that would be ignored, or no strategy that can run;
        raised before any work starts.

    Cost: minutes at most; verify and compile run beside each other in child processes.
    """
    request = CompareRequest(
        paper=paper,
        model=model,
        strategies=strategies,
        mesh=mesh,
        batch=batch,
        seq_len=seq_len,
        microbatches=microbatches,
        dtype=dtype,
        compression=compression,
        kernels=kernels,
        cluster=cluster,
        network=network,
        rates=rates,
        lenses=lenses,
        budget=budget,
        packed=packed,
        small=small,
        phase=phase,
        remat=remat,
        shard_weights=shard_weights,
        gather=gather,
        shard_optimizer=shard_optimizer,
        schedule=schedule,
        virtual_stages=virtual_stages,
        text=text,
        repeats=repeats,
        profile=profile is not False,
        sweep=sweep,
    )
    request.refuse_unused()
    resolved = replace(resolve(request), profile=_folder(profile))
    return run_comparisons([resolved], on_progress=on_progress)[0]


def _folder(profile: str | Path | bool) -> Path | None:
    """Return the folder of the traces; None without any. ValueError for True, which names none."""
    if profile is True:
        raise ValueError("profile: expected a folder for the traces, got True. Give a path.")
    return None if profile is False else Path(profile)


def compare_papers(
    papers: Sequence[str] | None = None,
    *,
    on_progress: Progress = lambda line: None,
    **options: Any,
) -> list[Report]:
    """Compare the strategies of several papers in one run.

    Args:
      papers: names of PAPERS; None takes all of them.
      on_progress: called with a line whenever something starts.
      options: arguments of `compare`, which hold for every paper.

    Returns:
      One Report per paper, as `compare` makes it.

    Raises:
      ValueError: as `compare`, for any of the papers, before any work starts.

    Cost: minutes; two child processes at a time: one compiles for all, the others verify a paper
    each.
    """
    known = {f.name for f in fields(CompareRequest)} - {"paper"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"compare_papers: unknown option {unknown[0]!r}.")
    folder = _folder(options.get("profile", False))
    options["profile"] = folder is not None
    request = CompareRequest(**options)
    request.refuse_unused()
    folders = {name: folder and folder / name for name in papers or PAPERS}
    return run_papers(request, papers, folders, on_progress=on_progress)


def run_papers(
    request: CompareRequest,
    papers: Sequence[str] | None = None,
    profiles: Mapping[str, Path | None] = MappingProxyType({}),
    *,
    on_progress: Progress,
) -> list[Report]:
    """Run one request for several papers, None being all, as `compare_papers` does.

    `profiles` maps a paper to the folder of its traces.
    """
    names = PAPERS if papers is None else papers
    resolved = [
        replace(resolve(request.replace(paper=name)), profile=profiles.get(name)) for name in names
    ]
    return run_comparisons(resolved, on_progress=on_progress)
