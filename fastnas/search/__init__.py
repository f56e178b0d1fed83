"""Strategies, the study on disk and the pipelines of the three methods."""
