"""The five papers: what each runs (config, batch, mesh), what it leaves out, what it claims."""
