"""All changes that may help, from what was compiled: each is tried by compiling it."""

from collections import Counter

from parallax.explanations.activations import activations
from parallax.explanations.arguments import argument_orders, donations, replicated_arguments
from parallax.explanations.candidate import Candidate
from parallax.explanations.constraints import costly_constraints, two_steps
from parallax.explanations.loops import copied_caches, invariant_gathers
from parallax.explanations.precision import early_casts, narrow_sums
from parallax.explanations.subject import Subject

# The next way to mend the same thing waits for other things with less at stake.
_LATER = 0.7


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
    ranks: Counter[str] = Counter()
    ordered = []
    for candidate in sorted(found, key=lambda c: -c.share):
        ordered.append((candidate.share * _LATER ** ranks[candidate.group], candidate))
        ranks[candidate.group] += 1
    return [candidate for _, candidate in sorted(ordered, key=lambda x: -x[0])]
