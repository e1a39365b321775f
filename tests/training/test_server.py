"""The light model server speaks vLLM's OpenAI API: tokens with their probabilities, tools, streams,
adapters.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.serving.huggingface.app import create_app
from infra.serving.huggingface.generation import (
    Generated,
    GenerationEngine,
    Sampling,
    UnloadableError,
)
from infra.serving.servers import Servers, ServingError
from infra.serving.settings import ServingSettings
from schemas.endpoints import Endpoint
from tests.conftest import serving
from tests.training.tiny import TOOLS, Task

MESSAGES = [{"role": "user", "content": "book two seats to rome"}]


@pytest.fixture
def engine(base: Path) -> Iterator[GenerationEngine]:
    running = GenerationEngine(base, "tiny")
    yield running
    running.close()


@pytest.fixture
def http(engine: GenerationEngine) -> Iterator[httpx.Client]:
    with serving(create_app(engine)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def adapter(base: Path, folder: Path, scale: float) -> Path:
    """Write an adapter that changes what the base says."""
    torch.manual_seed(int(scale * 100))
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"]),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale)
    model.save_pretrained(folder)
    return folder


def chat(http: httpx.Client, **more: Any) -> httpx.Response:
    return http.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": MESSAGES, "max_tokens": 12} | more,
    )


def test_every_token_has_the_probability_that_transformers_gives_it(
    http: httpx.Client, base: Path
) -> None:
    document = chat(http, seed=3, logprobs=True, return_token_ids=True, tools=TOOLS).json()
    choice = document["choices"][0]
    prompt, ids = document["prompt_token_ids"], choice["token_ids"]
    tokenizer, model = (
        AutoTokenizer.from_pretrained(base),
        AutoModelForCausalLM.from_pretrained(base),
    )
    text = tokenizer.apply_chat_template(
        MESSAGES, tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert prompt == tokenizer(text)["input_ids"]
    with torch.no_grad():
        found = torch.log_softmax(model(input_ids=torch.tensor([prompt + ids])).logits[0], dim=-1)
    wanted = [float(found[len(prompt) + i - 1, token]) for i, token in enumerate(ids)]
    assert [token["logprob"] for token in choice["logprobs"]["content"]] == pytest.approx(
        wanted, abs=1e-4
    )
    assert document["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(ids),
        "total_tokens": len(prompt) + len(ids),
    }


def test_prompts_of_different_lengths_answered_together_are_answered_as_if_alone(
    engine: GenerationEngine,
) -> None:
    prompts = [[5, 6, 7], [8] * 20, [9, 10], [11] * 7]
    sampling = Sampling(8, temperature=0.0)
    alone = [engine.ask("tiny", prompt, sampling).result() for prompt in prompts]
    together = [
        future.result() for future in [engine.ask("tiny", prompt, sampling) for prompt in prompts]
    ]
    assert [a.token_ids for a in alone] == [t.token_ids for t in together]
    for one, other in zip(alone, together, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_seed_draws_the_same_again_and_temperature_zero_the_likeliest(
    engine: GenerationEngine,
) -> None:
    def drawn(**more: Any) -> Generated:
        return engine.ask("tiny", [5, 6, 7], Sampling(10, **more)).result()

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert drawn(temperature=0.0) == drawn(temperature=0.0, seed=9)
    narrow = drawn(top_p=1e-9, seed=4)
    assert narrow.token_ids == drawn(temperature=0.0).token_ids, "so small a nucleus is one token"


def test_a_stream_says_what_the_whole_answer_says(http: httpx.Client) -> None:
    asked = {"seed": 5, "logprobs": True, "return_token_ids": True, "n": 2}
    whole = chat(http, **asked).json()
    with http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "stream": True} | asked,
    ) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert (
            "".join(c["delta"].get("content") or "" for c in mine) == choice["message"]["content"]
        )
        assert [token for c in mine for token in c.get("token_ids", ())] == choice["token_ids"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_text_completions_from_text_or_tokens(http: httpx.Client, base: Path) -> None:
    body = {
        "model": "tiny",
        "max_tokens": 5,
        "temperature": 0,
        "logprobs": 1,
        "return_token_ids": True,
    }
    ids = AutoTokenizer.from_pretrained(base)("book two")["input_ids"]
    first, second = (
        http.post("/v1/completions", json=body | {"prompt": p}).json()["choices"][0]
        for p in ("book two", ids)
    )
    assert first["text"] == second["text"]
    assert (first["prompt_token_ids"], len(first["logprobs"]["token_logprobs"])) == (ids, 5)


def test_a_stop_sequence_ends_an_answer_and_is_not_part_of_it(http: httpx.Client) -> None:
    def choice(**more: Any) -> dict[str, Any]:
        return dict(
            chat(http, seed=3, logprobs=True, return_token_ids=True, **more).json()["choices"][0]
        )

    whole = choice()
    text = whole["message"]["content"]
    stop = text[len(text) // 2 :][:2]
    cut = choice(stop=["never said", stop])
    assert (cut["finish_reason"], cut["message"]["content"]) == (
        "stop",
        text[: text.index(stop)].strip(),
    )
    count = len(cut["token_ids"])
    assert 0 < count < len(whole["token_ids"])
    assert cut["token_ids"] == whole["token_ids"][:count]
    assert len(cut["logprobs"]["content"]) == count
    assert choice(stop="never said") == whole


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "nobody"}, 404, "there are: tiny"),
        ({"messages": []}, 400, "messages"),
        ({"messages": None}, 400, "messages are missing"),
        ({"messages": [{"role": "user", "content": "word " * 400}]}, 400, "the model takes 256"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 0}, 400, "n:"),
    ],
)
def test_what_cannot_be_answered_is_said(
    http: httpx.Client, body: dict[str, Any], status: int, said: str
) -> None:
    answer = chat(http, **body)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), (
        answer.text
    )


def test_adapters_come_and_go_while_the_base_answers_as_before(
    http: httpx.Client, base: Path, tmp_path: Path
) -> None:
    def said(model: str) -> str:
        return str(
            chat(http, model=model, temperature=0).json()["choices"][0]["message"]["content"]
        )

    before = said("tiny")
    for name, scale in (("one", 0.5), ("two", 0.9)):
        folder = adapter(base, tmp_path / name, scale)
        loaded = http.post(
            "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)}
        )
        assert loaded.status_code == 200, loaded.text
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [
        "tiny",
        "one",
        "two",
    ]
    assert len({before, said("one"), said("two")}) == 3
    assert said("tiny") == before
    again = http.post(
        "/v1/load_lora_adapter", json={"lora_name": "one", "lora_path": str(tmp_path / "one")}
    )
    assert (again.status_code, "loaded already" in again.text) == (400, True)
    nothing = http.post(
        "/v1/load_lora_adapter", json={"lora_name": "three", "lora_path": str(tmp_path)}
    )
    assert (nothing.status_code, "holds no adapter" in nothing.text) == (400, True)
    for name in ("one", "two"):
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 200
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "one"}).status_code == 404
    assert chat(http, model="one").status_code == 404
    assert said("tiny") == before


def test_a_valid_call_is_a_tool_call_and_any_other_is_text(base: Path) -> None:
    from infra.serving.huggingface.app import TextRequest, _message

    asked = TextRequest(model="tiny", messages=MESSAGES, tools=TOOLS)
    task = Task("book", "two", "rome", hypothetical=False)
    message = _message(task.answer, asked)
    assert message["content"] is None
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {
        "city": "rome",
        "seats": 2,
    }
    for text in (
        '<tool_call>{"name":"book_seats","arguments":{"city":"mars","seats":2}}</tool_call>',
        "<tool_call>{</tool_call>",
    ):
        assert _message(text, asked) == {"role": "assistant", "content": text}


def test_weights_that_are_no_numbers_are_not_served(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    next(model.parameters()).data[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(UnloadableError, match="not finite"):
        GenerationEngine(tmp_path, "broken")


def test_servers_are_started_asked_and_stopped(base: Path, tmp_path: Path) -> None:
    servers = Servers(ServingSettings(start_timeout_s=120), tmp_path / "logs")
    server = servers.serve(str(base), "tiny")
    assert servers.serve(str(base), "tiny") is server, "one server for one set of weights"
    assert server.endpoint("tiny") == Endpoint(
        base_url=f"http://127.0.0.1:{server.port}/v1", model="tiny", tokens=True
    )
    folder = adapter(base, tmp_path / "one", 0.5)
    assert servers.serve_adapter(str(base), "tiny", "one", folder) is server
    with pytest.raises(ServingError, match="holds no adapter"):
        servers.serve_adapter(str(base), "tiny", "none", tmp_path)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    assert not server.alive
    servers.serve(str(base), "tiny")
    known = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
    assert known == ["tiny", "one"], "it came back on its port, with its adapters"
    successor = Servers(ServingSettings(start_timeout_s=120), tmp_path / "logs")
    adopted = successor.serve(str(base), "tiny")
    assert (adopted.process, adopted.port, list(adopted.adapters)) == (
        server.process,
        server.port,
        ["one"],
    )
    successor.close()
    assert not server.alive
    assert successor.servers == {}


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    servers = Servers(ServingSettings(start_timeout_s=60), tmp_path / "logs")
    (tmp_path / "weights").mkdir()
    with pytest.raises(
        ServingError, match=r"the server of broken ended: .*weights in .* cannot be served"
    ):
        servers.serve(str(tmp_path / "weights"), "broken")
    assert servers.servers == {}
