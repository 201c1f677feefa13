"""parallax: find out which way of splitting a model is right before you rent the GPUs.

parallax EXPERIMENT [--flags]        run an experiment; parallax EXPERIMENT --help explains it
parallax list KIND                   list models, strategies, clusters, networks or papers
parallax completion bash             print a script that completes names and flags; also zsh
parallax --version                   print the version
"""

import contextlib
import importlib
import sys

from parallax.commands.listing import KINDS, listing
from parallax.experiments import ctrl_c

EXPERIMENTS = {
    "compare": "strategies side by side: exact? fits? what moves? how fast at best?",
    "plan": "which strategy serves a model best, before any GPU is rented",
    "describe": "a step as Megatron, vLLM and others run it: time, memory, with error bars",
    "validate": "the predictions against published measurements, or against yours",
    "regimes": "where layer-wise deployment wins, and where it does not",
    "pairs": "which of two strategies is faster on the devices here, by paired runs",
    "calibrate": "fit the cost model to the GPU at hand",
    "bench_kernels": "our GPU kernels against baselines, on the GPU at hand",
    "l2_residency": "what stays in the GPU's L2 cache between two steps, measured",
    "inspect": "any compiled program, from its text: what it sends, how long it should take",
    "explain": "any sharded program, by source line: what the compiler did, and what would help",
    "claims": "every figure of the papers, derived again and held against the machine's limits",
    "compress_quality": "what quantization and sparsity cost a model trained here, measured",
    "generate": "continue prompts with a published model, under any strategy",
    "compress": "quantize and sparsify a model's weights, to run under any strategy",
    "deploy": "serve layer by layer on a chain of devices that survives the loss of one",
    "train": "train, stop, and resume under another strategy",
    "export": "write a training run's weights in Hugging Face's layout",
    "doctor": "what is installed here, and which lenses work with it",
}
INTERRUPTED = 130


def usage() -> str:
    """Return the list of experiments, with the first command to type."""
    lines = [(__doc__ or "").strip(), "", "Experiments:"]
    lines += [f"  {name:<18}{what}" for name, what in EXPERIMENTS.items()]
    lines += [f"  {'list':<18}{', '.join(KINDS)}", "", "First: parallax compare --paper=ring_sp"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the `parallax` command and exit with the experiment's status."""
    arguments = (sys.argv if argv is None else argv)[1:]
    # Tests call it with arguments; their process goes on.
    with ctrl_c.handled() if argv is None else contextlib.nullcontext():
        sys.exit(_status(arguments))


def _status(arguments: list[str]) -> int:
    try:
        from parallax.experiments.output import quietly

        return quietly(lambda: _run(arguments))
    except KeyboardInterrupt:  # while the first modules are imported
        print("\nparallax: interrupted; nothing was started.", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "completion":
        return _completion(rest)
    if name == "--version":
        print(f"parallax {importlib.import_module('parallax').__version__}")
        return 0
    if name == "list":
        return _list(rest)
    if name not in EXPERIMENTS:
        known = ", ".join((*EXPERIMENTS, "list", "completion"))
        print(f"parallax: unknown experiment {name!r}. Use one of: {known}.", file=sys.stderr)
        return 2
    from parallax.experiments.launch import launch

    return launch(name, rest, tuple(EXPERIMENTS))


def _list(rest: list[str]) -> int:
    if len(rest) != 1 or rest[0] not in KINDS:
        got = " ".join(rest) or "nothing"
        print(f"parallax list: expected one of {', '.join(KINDS)}; got {got}.", file=sys.stderr)
        return 2
    print(listing(rest[0]))
    return 0


def _completion(rest: list[str]) -> int:
    from parallax.experiments.completion import SHELLS, completion

    if len(rest) != 1 or rest[0] not in SHELLS:
        got = " ".join(rest) or "nothing"
        print(f"parallax completion: expected {' or '.join(SHELLS)}; got {got}.", file=sys.stderr)
        return 2
    print(completion(rest[0], tuple(EXPERIMENTS)), end="")
    return 0


if __name__ == "__main__":
    main()
