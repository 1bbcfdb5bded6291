"""Tests of the documents: their tables, links and commands."""
