"""parallax: which way of splitting a model is right, known before the GPUs are rented.

parallax EXPERIMENT [--flags]        run one; parallax EXPERIMENT --help teaches it
parallax list KIND                   models, strategies, clusters or papers
"""

import sys

from parallax.experiments.listing import KINDS, listing

EXPERIMENTS = {
    "compare": "strategies side by side: exact? fits? what moves? how fast at best?",
    "plan": "which strategy serves a model best, before any GPU is rented",
    "regimes": "where layer-wise deployment wins, and where not",
    "pairs": "which of two strategies is faster on the devices here, by paired runs",
    "calibrate": "fit the cost model to the GPU at hand",
    "bench_kernels": "our GPU kernels beside others, on the GPU at hand",
    "l2_residency": "what stays in the GPU's L2 cache between two steps, measured",
    "inspect": "any compiled program's text: what it sends, how long it should take",
    "claims": "every figure of the papers: what it comes to, what the machine allows",
    "compress_quality": "what fewer bits a weight cost a model trained here, measured",
    "generate": "continue prompts with a published model, under any strategy",
    "compress": "a model's weights in fewer bits, stored so and run under any strategy",
    "deploy": "layer by layer on a chain of devices that survives the loss of one",
    "train": "train, stop, and go on under another strategy",
}


def usage() -> str:
    """What there is, with the first command to type."""
    lines = [(__doc__ or "").strip(), "", "Experiments:"]
    lines += [f"  {name:<18}{what}" for name, what in EXPERIMENTS.items()]
    lines += [f"  {'list':<18}{', '.join(KINDS)}", "", "First: parallax compare --paper=ring_sp"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `parallax` command; exits with the experiment's status."""
    arguments = (sys.argv if argv is None else argv)[1:]
    try:
        from parallax.experiments.output import quietly

        status = quietly(lambda: _run(arguments))
    except KeyboardInterrupt:  # while the first modules are imported
        status = 130
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "list":
        return _list(rest)
    if name not in EXPERIMENTS:
        known = ", ".join((*EXPERIMENTS, "list"))
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


if __name__ == "__main__":
    main()
