"""The analytical model of steps that other software runs, described by its layout."""
