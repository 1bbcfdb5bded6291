"""The lock files, and the program that writes them."""
