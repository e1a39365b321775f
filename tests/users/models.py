"""The model server of the users. It speaks OpenAI's protocol. One of its two models is better."""

import json
import re
from hashlib import blake2b
from typing import Any

from fastapi import FastAPI, Request

SUM = re.compile(r"(\d+) \+ (\d+)")
RIGHT = {"quick": 0.5, "careful": 0.95}
"""Share of questions that a model answers well."""


def luck(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2**64


def reply(model: str, text: str) -> str:
    """Return what a model says to a sum, to a wish for JSON, or to anything else."""
    well = luck(f"{model} {text}") < RIGHT[model]
    if found := SUM.search(text):
        return str(int(found[1]) + int(found[2]) + (not well))
    if "as JSON" in text:
        if model == "quick" and "hard" in text:
            return "Sure! Here is your JSON, I think."
        return json.dumps({"quality": (0.7 if model == "quick" else 0.8) + 0.2 * luck(text)})
    return "Certainly, like this." if well else "I cannot say."


def model_server() -> FastAPI:
    """Return the server."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> dict[str, Any]:
        body = await request.json()
        said = reply(body["model"], body["messages"][-1]["content"])
        return {
            "id": f"chatcmpl-{luck(json.dumps(body))}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": said},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        }

    return app
