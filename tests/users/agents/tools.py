"""Works through ten steps with tools, and lets a policy choose the tool of each step."""

import json
import os
import sys

from everloop_client import Client

TOOLS = [
    {"id": "search", "text": "Search the handbook for a passage."},
    {"id": "calculator", "text": "Compute with the calculator."},
]


def main() -> None:
    everloop = Client(os.environ["GATEWAY"])
    for line in sys.stdin:
        ticket = json.loads(line)
        used, solved = [], 0
        with everloop.rollout(task="steps") as rollout:
            for step, right in zip(ticket["steps"], ticket["right"], strict=True):
                tool = TOOLS[rollout.decide("tool-policy", step, TOOLS).index]["id"]
                solved += tool == right  # what the tool brought is of use
                used.append(tool)
            rollout.reward(solved / len(used))
        print(json.dumps({"used": used, "reward": solved / len(used)}), flush=True)


if __name__ == "__main__":
    main()
