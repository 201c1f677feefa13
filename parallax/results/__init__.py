"""What the lenses find, as frozen values; every number has its tag."""
