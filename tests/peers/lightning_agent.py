"""An agent as Agent Lightning's local controller runs it: one model call, streamed and not, and a
reward.
"""

import os

import httpx


class Agent:
    """Answers the question it finds in its environment."""

    def run(self) -> None:
        question = os.environ["QUESTION"]
        if question == "fail":
            raise RuntimeError("this agent fails")
        headers = {"authorization": f"Bearer {os.environ['AGL_KEY']}"}
        body = {"model": "any", "messages": [{"role": "user", "content": question}]}
        url = f"{os.environ['AGL_OPENAI_BASE_URL']}/chat/completions"
        with httpx.Client(headers=headers, timeout=30) as http:
            http.post(url, json=body).raise_for_status()
            with http.stream("POST", url, json=body | {"stream": True}) as stream:
                assert b"[DONE]" in stream.read()
            reward = {"event_type": "reward", "data": {"value": len(question) / 10}}
            http.post(os.environ["AGL_EVENT_URL"], json=reward).raise_for_status()
