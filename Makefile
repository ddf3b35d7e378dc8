# The usual tasks; CONTRIBUTING.md says more.
.PHONY: install check test slow results docs

install:
	pip install -e ".[test]"

check:
	ruff check .
	ruff format --check .
	lint-imports
	mypy

test:
	pytest

slow:
	NNUNET_EXT_FORKED=1 pytest -m "slow and not long"

results: # the pages and figures that are made of benchmarks/results
	python -m benchmarks.page.results_page
	python -m benchmarks.page.feature_matrix

docs: # the documentation site, in the folder `site`
	pip install -e ".[docs]"
	mkdocs build --strict
