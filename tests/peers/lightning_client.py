"""Agent Lightning's own controller and rollout manager, run against a gateway: `lightning_client.py
GATEWAY KEY`.

Prints what they found as JSON. Runs in an environment with agentlightning 1.0.2.
"""

import asyncio
import json
import sys
import threading

from agentlightning.client import AgentLightningAsyncClient
from agentlightning.controller.local_reconciler import LocalReconciler
from agentlightning.verl.agl_rollout_manager import AglAsyncRolloutManager, AglRolloutManager
from omegaconf import OmegaConf

gateway, key, upstream = sys.argv[1:]
settings = OmegaConf.create(
    {
        "runner_type": "local",
        "agl_server": {"url": gateway, "agent_url": None, "key": key},
        "local_runner": {"maximum_size": 4, "poll_interval": 0.1},
    }
)


async def control(stop: threading.Event) -> None:
    async with AgentLightningAsyncClient(base_url=gateway, key=key) as api:
        reconciler = LocalReconciler(api=api, config=settings)
        running = asyncio.create_task(reconciler.run())
        while not stop.is_set():
            await asyncio.sleep(0.05)
        reconciler.stop()
        await running


def managed(kind: type) -> object:
    return kind(
        agl_base_url=gateway,
        agl_key=key,
        model="detailed",
        step=1,
        train_rollout_n=2,
        rollout_timeout_seconds=60,
        poll_interval_seconds=0.1,
        local_agent_class="lightning_agent.Agent",
        local_env_map={"QUESTION": "input.question"},
    )


stop = threading.Event()
controller = threading.Thread(target=lambda: asyncio.run(control(stop)))
controller.start()
try:
    manager = managed(AglRolloutManager)
    manager.register_model([f"{upstream}/v1"])
    data = {"question": ["one", "two"]}
    trained = manager.enqueue_and_wait_until_completed(data, is_train=True)
    validated = manager.enqueue_and_wait_until_completed(
        {"question": ["three", "fail"]}, is_train=False
    )
    groups, left = managed(AglAsyncRolloutManager).enqueue_and_wait_until_group_completed(
        data, [], is_train=True, target_finished_group_num=1
    )
    manager.delete_model()
finally:
    stop.set()
    controller.join()


def shown(completed: list) -> list:
    return [
        {
            "state": str(rollout.rollout_state),
            "reward": rollout.final_reward,
            "triplets": [
                [t.prompt, t.response["token_ids"], t.response["log_probs"], t.reward]
                for t in rollout.triplets
            ],
            "question": rollout.input["question"],
        }
        for rollout in completed
    ]


json.dump(
    {
        "trained": shown(trained),
        "validated": shown(validated),
        "group": shown(groups),
        "left": len(left),
    },
    sys.stdout,
)
