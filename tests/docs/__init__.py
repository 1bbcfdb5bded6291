"""Tests of the documents: their tables, their links, and the commands in them."""
