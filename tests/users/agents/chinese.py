"""中文客服:为每位顾客选择一种处理办法。(A support agent in Chinese chooses what to do.)"""

import json
import os
import sys

import httpx

GATEWAY = os.environ["GATEWAY"]
CANDIDATES = [
    {"id": "退款", "text": "把钱退还给顾客。"},
    {"id": "换货", "text": "免费再寄一件新的。"},
    {"id": "道歉", "text": "表示歉意,并送一张优惠券。"},
]


def main() -> None:
    everloop = httpx.Client(base_url=f"{GATEWAY}/everloop/v1")
    for line in sys.stdin:
        ticket = json.loads(line)
        rollout = f"kefu-{ticket['number']}"
        asked = {
            "rollout_id": rollout,
            "policy": "kefu-policy",
            "context": ticket["question"],
            "candidates": CANDIDATES,
        }
        choice = everloop.post("/decisions", json=asked).raise_for_status().json()["choice"]
        used = str(CANDIDATES[choice]["id"])
        reward = {"rollout_id": rollout, "value": ticket["worth"][used], "comment": "顾客评分"}
        everloop.post("/rewards", json=reward).raise_for_status()
        ended = {"state": "succeeded", "output": used}
        everloop.post(f"/rollouts/{rollout}/end", json=ended).raise_for_status()
        print(json.dumps({"used": [used], "reward": reward["value"]}), flush=True)


if __name__ == "__main__":
    main()
