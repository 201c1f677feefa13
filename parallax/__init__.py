"""Parallax: know which way of splitting a model is right before renting the GPUs."""

from pathlib import Path

from parallax._links import refuse_text_links

refuse_text_links(Path(__file__).parent)
