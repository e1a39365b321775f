"""Answers questions with OpenAI's client and rewards what was right: the README's five lines."""

import json
import os
import sys

import httpx
from openai import OpenAI

GATEWAY = os.environ["GATEWAY"]


def main() -> None:
    client = OpenAI(base_url=f"{GATEWAY}/v1", api_key="any")
    everloop = httpx.Client(base_url=f"{GATEWAY}/everloop/v1")
    for line in sys.stdin:
        ticket = json.loads(line)
        rollout = f"question-{ticket['number']}"
        answer = client.chat.completions.create(
            model="assistant",
            messages=[{"role": "user", "content": ticket["question"]}],
            extra_headers={"x-everloop-rollout-id": rollout},
        )
        right = answer.choices[0].message.content == ticket["expected"]
        reward = {"rollout_id": rollout, "value": float(right)}
        everloop.post("/rewards", json=reward).raise_for_status()
        everloop.post(f"/rollouts/{rollout}/end", json={"state": "succeeded"}).raise_for_status()
        print(json.dumps({"used": [answer.model], "reward": float(right)}), flush=True)


if __name__ == "__main__":
    main()
