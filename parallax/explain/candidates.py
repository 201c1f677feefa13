"""All changes that may help, from what was compiled: each is tried by compiling it."""

from parallax.explain.activations import activations
from parallax.explain.arguments import argument_orders, donations, replicated_arguments
from parallax.explain.candidate import Candidate
from parallax.explain.constraints import costly_constraints, two_steps
from parallax.explain.loops import copied_caches, invariant_gathers
from parallax.explain.precision import early_casts, narrow_sums
from parallax.explain.subject import Subject


def candidates(subject: Subject) -> list[Candidate]:
    """Return the changes worth a try, those with most at stake first."""
    found = [
        *donations(subject),
        *replicated_arguments(subject),
        *early_casts(subject),
        *invariant_gathers(subject),
        *narrow_sums(subject),
        *copied_caches(subject),
        *two_steps(subject),
        *costly_constraints(subject),
        *argument_orders(subject),
        *activations(subject),
    ]
    return sorted(found, key=lambda c: -c.share)
