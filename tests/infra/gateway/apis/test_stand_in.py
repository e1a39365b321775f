"""The stand-in streams every API as OpenAI's client reads it."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from openai import OpenAI

from infra.gateway.apis import stand_in
from tests.conftest import serving

MESSAGES: Any = [{"role": "user", "content": "Refund or replace?"}]


@pytest.fixture
def client() -> Iterator[OpenAI]:
    app = FastAPI()
    app.include_router(stand_in.router)
    with (
        serving(app) as url,
        OpenAI(base_url=f"{url}{stand_in.PATH}", api_key="any", max_retries=0) as opened,
    ):
        yield opened


def test_a_chat(client: OpenAI) -> None:
    said = client.chat.completions.create(model="a", messages=MESSAGES).choices[0].message.content
    chunks: Any = client.chat.completions.create(model="a", messages=MESSAGES, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said


def test_a_completion(client: OpenAI) -> None:
    said = client.completions.create(model="a", prompt="Once").choices[0].text
    texts = client.completions.create(model="a", prompt="Once", stream=True)
    assert "".join(chunk.choices[0].text for chunk in texts) == said


def test_a_response(client: OpenAI) -> None:
    said = client.responses.create(model="a", input="hi").output_text
    with client.responses.stream(model="a", input="hi") as stream:
        assert stream.get_final_response().output_text == said
