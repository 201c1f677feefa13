"""`python -m parallax`, the same as the `parallax` script."""

import runpy

if __name__ == "__main__":
    runpy.run_module("parallax.experiments", run_name="__main__", alter_sys=True)
