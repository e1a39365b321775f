"""Reads answers as JSON. On hard tasks an answer may be none.

Then the rollout ends as failed, by the exception, or the whole program dies and says nothing.
"""

import json
import os
import sys

from everloop_client import Client
from openai import OpenAI

GATEWAY = os.environ["GATEWAY"]


def main() -> None:
    everloop, models = Client(GATEWAY), OpenAI(base_url=f"{GATEWAY}/v1", api_key="any")
    for line in sys.stdin:
        ticket = json.loads(line)
        used: list[str] = []
        try:
            with everloop.rollout(task="json") as rollout:
                model = models.with_options(base_url=rollout.base_url)
                answer = model.chat.completions.create(
                    model="describer", messages=[{"role": "user", "content": ticket["question"]}]
                )
                used.append(answer.model)
                text = answer.choices[0].message.content or ""
                if ticket["deadly"] and not text.startswith("{"):
                    print(json.dumps({"used": used, "reward": None}), flush=True)
                    os._exit(1)  # out of memory, as it were: nobody is told
                rollout.reward(json.loads(text)["quality"])
        except ValueError:  # the rollout has ended as failed
            pass
        print(json.dumps({"used": used}), flush=True)


if __name__ == "__main__":
    main()
