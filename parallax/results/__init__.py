"""The results of lenses and sweeps, as frozen values; every number has a tag for its source."""
