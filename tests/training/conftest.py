"""A small data set in LLaVA's format, which `cal train` reads from files."""

import pytest

from tests.cal import cal


@pytest.fixture(scope="session")
def caption_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    captions = ["data.n=24", "data.text_only_share=0.2", "data.families=[captions]", "data.irrelevant=0"]
    cal("noise-inject", "ratio=0", *captions, f"output={folder}", folder=folder)
    return ["data=llava_json", f"data.path={folder}/data.json", f"data.image_folder={folder}/images"]
