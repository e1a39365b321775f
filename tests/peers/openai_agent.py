"""An agent of OpenAI's Agents SDK with nothing changed but the base URL: `openai_agent.py GATEWAY
API`.
"""

import asyncio
import sys

from openai import AsyncOpenAI

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)

gateway, api = sys.argv[1:]
set_tracing_disabled(disabled=True)
client = AsyncOpenAI(base_url=f"{gateway}/v1", api_key="any")
model = (OpenAIChatCompletionsModel if api == "chat" else OpenAIResponsesModel)(
    model="plain", openai_client=client
)
agent = Agent(name="helper", instructions="be kind", model=model)


async def main() -> None:
    first = await Runner.run(agent, "hi")
    second = await Runner.run(
        agent, [*first.to_input_list(), {"role": "user", "content": "and now?"}]
    )
    streamed = Runner.run_streamed(agent, "something else")
    async for _ in streamed.stream_events():
        pass
    sys.stdout.write("\n".join(str(result.final_output) for result in (first, second, streamed)))


asyncio.run(main())
