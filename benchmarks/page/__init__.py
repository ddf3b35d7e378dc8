"""The generated results page, its tables and its figures."""
