"""The scores that a step of attention computes, in whole blocks, and the longest step there is.

A program holds the pairs of blocks that it visits as a list, which grows with the square of a
step's tokens.
"""

import functools

from parallax.kernels.ring_attention import score_elements

MOST_TOKENS = 2**21  # of one device in a step: 8 million pairs of blocks


@functools.lru_cache(maxsize=4096)
def scores_of_blocks(
    queries: int, keys: int, is_causal: bool, window: int | None = None, offset: int = 0
) -> int:
    """Count the scores per head of a step, see `kernels.ring_attention.score_elements`.

    Raises:
      ValueError: more tokens than a program can list the blocks of.
    """
    if max(queries, keys) > MOST_TOKENS:
        raise ValueError(
            f"attention to {max(queries, keys):,} tokens on one device is a list of too many "
            f"blocks to compile, expected at most {MOST_TOKENS:,}. Use a smaller seq_len, or split "
            "the sequence over more devices."
        )
    return score_elements(queries, keys, is_causal, window, offset)
