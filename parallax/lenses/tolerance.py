"""The tolerance table: the only place where error limits are defined."""

import math

from parallax.results.lens_results import Exactness

# float64: relative L2 error against the unsharded model, of the logits and of every gradient.
FLOAT64_LIMIT = 1e-11
# Other dtypes: at most FACTOR times the unsharded model's own error in that dtype, plus a floor.
FACTOR = 2.0
FLOORS = {"float32": 1e-6, "bfloat16": 2e-3, "float16": 5e-4}
# User modules may compute in dtypes that the library's own model does not: the unit roundoff.
FLOORS |= {"float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3}


def judge(
    dtype: str,
    logits_error: float,
    gradients_error: float | None,
    reference_logits_error: float = 0.0,
    reference_gradients_error: float = 0.0,
    worst_parameter: str = "",
) -> Exactness:
    """Judge errors by the table; all are relative L2 errors against the float64 reference.

    `worst_parameter` is the path of the parameter whose gradient has the error.
    """
    if dtype == "float64":
        logits_limit = gradients_limit = FLOAT64_LIMIT
    else:
        logits_limit = _limit(dtype, reference_logits_error)
        gradients_limit = _limit(dtype, reference_gradients_error)
    return Exactness(
        dtype=dtype,
        logits_error=logits_error,
        gradients_error=gradients_error,
        logits_limit=logits_limit,
        gradients_limit=None if gradients_error is None else gradients_limit,
        reference_error=reference_logits_error,
        worst_parameter=worst_parameter,
    )


def _limit(dtype: str, reference_error: float) -> float:
    # A reference that is not finite allows nothing: every error would be within twice its own.
    own = reference_error if math.isfinite(reference_error) else 0.0
    return FACTOR * own + FLOORS[dtype]
