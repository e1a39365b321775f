"""Asking a role's model for its JSON object: validated, and asked for again once when it cannot be
used.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AnyMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import PydanticOutputParser
from langchain_core.runnables import Runnable, RunnableConfig

from research_society.outputs import Output

O = TypeVar("O", bound=Output)  # noqa: E741
Model = Runnable[Any, BaseMessage]


class UnusableAnswerError(Exception):
    """A model answered twice with something that is not what its role must answer."""


async def usable_answer(
    model: Model, messages: Sequence[AnyMessage], output: type[O], config: RunnableConfig
) -> tuple[O, int]:
    """Return the last message as the role's output, asking once more if it cannot be read.

    Returns:
        The output, and how many times the model was asked again (0 or 1).

    Raises:
        UnusableAnswerError: the second answer cannot be read either.
    """
    try:
        return _read(messages[-1], output), 0
    except OutputParserException as error:
        reason = str(error).splitlines()[0]
        # The reason goes back to the model, which can often mend its answer.
        again = HumanMessage(
            f"That answer cannot be used: {reason}\nAnswer again with the JSON object alone."
        )
        reply = await model.ainvoke([*messages, again], config)
    try:
        return _read(reply, output), 1
    except OutputParserException as error:
        raise UnusableAnswerError(f"{output.__name__}: {str(error).splitlines()[0]}") from error


def _read(message: BaseMessage, output: type[O]) -> O:
    return PydanticOutputParser(pydantic_object=output).parse(str(message.text))
