"""Every block of the documents is run or parsed, or says why not."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.config.settings import CONFIG_VARIABLE, Settings, load_settings
from streams.processors.promotion_state import baseline_route
from tests.conftest import serving
from tests.docs.pages import BLOCKS, PAGES, ROOT, Block, blocks_in, blocks_of, name_of, prose_of
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import Upstream

CHECKED = {"console", "json", "python", "toml", "yaml"}
PLAIN = {"text", "mermaid"}  # pictures, and what programs print
URL_IN_THE_DOCS = "http://127.0.0.1:8700"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_stands_in_fences_of_a_language_that_the_tests_know(page: Path) -> None:
    unknown = [str(block) for block in blocks_of(page) if block.language not in CHECKED | PLAIN]
    assert not unknown, f"say which language it is: {sorted(CHECKED | PLAIN)}"
    indented = re.findall(r"(?:^|\n)\n    \S.*", prose_of(page))
    assert not indented, "indented code is seen by no test; put it into a fence"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.mark], ids=str)
def test_a_block_that_another_test_runs_is_known_to_that_test(block: Block) -> None:
    if block.mark == "run by":
        test = ROOT / block.reason
        assert test.is_file(), f"{block.reason} is not there"
        assert block.page.name in test.read_text(), (
            f"{block.reason} does not read {block.page.name}"
        )


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "text"], ids=str)
def test_plain_text_is_no_code_in_hiding(block: Block) -> None:
    with pytest.raises(SyntaxError):
        compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", blocks_in("toml"), ids=str)
def test_a_toml_block_is_a_configuration(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "everloop.toml"
    file.write_text(block.text)
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_settings(), Settings)


def test_json_and_yaml_blocks_can_be_parsed() -> None:
    for block in blocks_in("json", "yaml"):
        read = json.loads if block.language == "json" else yaml.safe_load
        assert read(block.text) is not None, str(block)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_a_python_block_compiles_also_where_it_is_a_fragment(block: Block) -> None:
    compile(block.text, str(block), "exec")


RUN = dict.fromkeys(block.page for block in blocks_in("python"))


@contextmanager
def _gateway(data_dir: Path, code: str) -> Iterator[Gateway]:
    """A gateway that serves the models and policies which a page's code names."""
    settings = Settings(data_dir=data_dir)
    models = re.findall(r'\bmodel="([^"]+)"', code)
    policies = re.findall(r'(?:"policy": |\bdecide\(\s*)"([^"]+)"', code)
    with serving(Upstream().app) as url:
        publish(
            settings.log_path,
            *(model_route(name, url) for name in models),
            *(baseline_route(name) for name in policies),
        )
        with running_gateway(settings) as gateway:
            yield gateway


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    blocks = [block for block in blocks_in("python") if block.page == page]
    with _gateway(tmp_path, "\n".join(block.text for block in blocks)) as gateway:
        scope: dict[str, Any] = {}
        for block in blocks:
            code = block.text.replace(URL_IN_THE_DOCS, gateway.url)
            exec(compile(code, str(block), "exec"), scope)
        if (client := scope.get("client")) is not None:
            client.close()
