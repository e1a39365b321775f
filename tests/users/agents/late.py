"""Ends each rollout at once. Its rewards come long after: 200 times as long as a rollout takes.

A real one is told the next day. Here a day is 20 seconds.
"""

import json
import os
import sys
import time
from collections import deque

import httpx
from openai import OpenAI

GATEWAY = os.environ["GATEWAY"]
DAY_S = 20.0


def main() -> None:
    client = OpenAI(base_url=f"{GATEWAY}/v1", api_key="any")
    everloop = httpx.Client(base_url=f"{GATEWAY}/everloop/v1")
    tomorrow: deque[tuple[float, dict[str, object]]] = deque()
    for line in sys.stdin:
        while tomorrow and tomorrow[0][0] <= time.monotonic():
            everloop.post("/rewards", json=tomorrow.popleft()[1]).raise_for_status()
        ticket = json.loads(line)
        rollout = f"order-{ticket['number']}"
        answer = client.chat.completions.create(
            model="clerk",
            messages=[{"role": "user", "content": ticket["question"]}],
            extra_headers={"x-everloop-rollout-id": rollout},
        )
        everloop.post(f"/rollouts/{rollout}/end", json={"state": "succeeded"}).raise_for_status()
        right = float(answer.choices[0].message.content == ticket["expected"])
        tomorrow.append((time.monotonic() + DAY_S, {"rollout_id": rollout, "value": right}))
        print(json.dumps({"used": [answer.model], "reward": right}), flush=True)


if __name__ == "__main__":
    main()
