"""Reports of a comparison: text, tables, figures, and the HTML, Markdown and JSON files."""
