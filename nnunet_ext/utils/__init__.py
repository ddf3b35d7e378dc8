"""Files, processes and devices; nothing here depends on the rest of the package."""
