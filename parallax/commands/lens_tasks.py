"""The tasks that the verify and compile lenses run in their child processes."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallax.commands.resolve import REFUSALS
from parallax.commands.sizes import Cases
from parallax.commands.sweep import one_line
from parallax.lenses.child import Progress
from parallax.lenses.compiling_steps import compile_program
from parallax.lenses.verify_decoding import verify_decoding
from parallax.lenses.verifying import verify_transformer
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.parallel.remat import Remat
from parallax.results.lens_results import Compilation, Verification
from parallax.rules import Phase
from parallax.strategy import Strategy
from parallax.workload import Workload


@dataclass(frozen=True)
class VerifyTask:
    """The strategies of one comparison to verify, and the text that they run on."""

    phase: Phase
    config: ModelConfig
    cases: Cases
    text: bytes
    text_name: str
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class CompileTask:
    """One program to compile."""

    config: ModelConfig
    strategy: Strategy
    workload: Workload
    cluster: Cluster
    phase: Phase = "prefill"
    remat: Remat = "layer"


@dataclass(frozen=True)
class Refusal:
    """Why a program could not be compiled, in one line."""

    why: str


def verify_task(task: VerifyTask, *, on_progress: Progress) -> list[Verification]:
    """Verify the strategies of one comparison in this process, as the verify lens's child does."""
    verify = verify_decoding if task.phase == "decode" else verify_transformer
    return verify(
        task.config, task.cases, task.text, task.text_name, task.dtypes,
        on_progress=lambda line: on_progress(f"{task.config.name}: {line}"),
    )  # fmt: skip


def compile_all(
    tasks: Sequence[CompileTask], *, on_progress: Progress
) -> list[Compilation | Refusal]:
    """Compile every task in this process, one after another, as the compile lens's child does."""
    import jax

    found: list[Compilation | Refusal] = []
    for number, task in enumerate(tasks, 1):
        name = f"{number} of {len(tasks)}: {task.config.name}"
        try:
            found.append(
                compile_program(
                    task.config, task.strategy, task.workload, task.cluster, task.phase, task.remat,
                    on_progress=lambda line, name=name: on_progress(f"{name}: {line}"),
                )
            )  # fmt: skip
        except (*REFUSALS, jax.errors.JaxRuntimeError) as error:
            found.append(Refusal(one_line(error)))
    return found
