"""Studies around the library, which does not need them: records, their pages, and paired runs."""
