"""The kernels on a GPU: checked, timed, recorded, and the page of the record."""
