"""Generation: prompts that wait are decoded together, each with its own sampling, and every token
has its probability.

Sampling follows vLLM: log-probabilities are of the model itself, before temperature and top-p.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from learners.training.config import ADAPTER_FILE


class UnloadableError(Exception):
    """Weights cannot be served; the message says why."""


class UnknownModelError(Exception):
    """No weights of this name are loaded; the message lists those there are."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        most: tokens.
        temperature: 0 takes the likeliest token.
        top_p: least probability mass that is drawn from.
        seed: None draws differently each time.
    """

    most: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Generated:
    """An answer.

    Attributes:
        token_ids: the end token included, where it came to one.
        logprobs: natural logarithms, one a token.
        text: without the end token.
        finish_reason: `stop` or `length`.
    """

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str


@dataclass
class _Asked:
    model: str
    prompt: list[int]
    sampling: Sampling
    answer: "Future[Generated]" = field(default_factory=Future)


class GenerationEngine:
    """A model in memory with its adapters, and a thread that answers.

    Args:
        folder: of whole weights.
        name: that requests know the weights by.
        together: most prompts that are decoded at once.
        threads: CPU threads.

    Raises:
        UnloadableError: the folder holds no weights, or they are not finite numbers.
    """

    def __init__(self, folder: Path, name: str, together: int = 32, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        try:
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                # CPUs compute half precision slowly, and log-probabilities would be coarse.
                folder,
                dtype=torch.float32,
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise UnloadableError(f"the weights in {folder} cannot be served: {said}") from error
        _check(self._model, folder)
        self._base, self._adapters = name, set[str]()
        self._together = together
        self._waiting: SimpleQueue[_Asked | None] = SimpleQueue()
        self._lock = threading.Lock()  # weights are not exchanged in the middle of an answer
        self.context = int(self._model.config.max_position_embeddings)
        ends = self._model.generation_config.eos_token_id
        # Some models name several end tokens, others none but the tokenizer's.
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        if self.tokenizer.eos_token_id is not None:
            self._ends.add(self.tokenizer.eos_token_id)
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def names(self) -> list[str]:
        """What requests may ask for: the weights, and the adapters on them."""
        return [self._base, *sorted(self._adapters)]

    def ask(self, model: str, prompt: list[int], sampling: Sampling) -> "Future[Generated]":
        """Queue a prompt and return its answer to come.

        Raises:
            UnknownModelError: there is no such model.
        """
        self._check_model(model)
        asked = _Asked(model, prompt, sampling)
        self._waiting.put(asked)
        return asked.answer

    def text(self, token_ids: list[int]) -> str:
        """Return the text of tokens, with special tokens as they are written."""
        tokenizer: Any = self.tokenizer
        return str(tokenizer.decode(token_ids, skip_special_tokens=False))

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter beside the others. Requests that are being answered are finished first.

        Raises:
            UnloadableError: it is none, or fits other weights.
        """
        if not (folder / ADAPTER_FILE).exists():
            raise UnloadableError(f"{folder} holds no adapter")
        with self._lock:
            try:
                if isinstance(self._model, PeftModel):
                    self._model.load_adapter(str(folder), adapter_name=name)
                else:
                    self._model = PeftModel.from_pretrained(
                        self._model, str(folder), adapter_name=name
                    ).eval()
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise UnloadableError(f"{folder}: {error}") from error
            self._adapters.add(name)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            UnknownModelError: there is no such adapter.
        """
        if name not in self._adapters:
            raise UnknownModelError(
                f"no adapter {name!r} is loaded; there are: {', '.join(self._adapters) or 'none'}"
            )
        with self._lock:
            self._adapters.discard(name)
            if self._adapters:
                self._model.delete_adapter(name)
            else:
                self._model = self._model.unload()

    def close(self) -> None:
        """Answer the waiting prompts, then stop."""
        self._waiting.put(None)
        self._thread.join()

    def _check_model(self, model: str) -> None:
        if model not in self.names:
            raise UnknownModelError(f"no model {model!r}; there are: {', '.join(self.names)}")

    def _work(self) -> None:
        held: list[_Asked] = []
        while True:
            first = held.pop(0) if held else self._waiting.get()
            if first is None:
                return
            time.sleep(0.002)  # what was asked at the same moment is answered together
            batch = [first]
            # Requests for other adapters wait: one batch has one set of weights.
            held += self._take_waiting()
            for asked in list(held):
                if asked is not None and asked.model == first.model and len(batch) < self._together:
                    batch.append(asked)
                    held.remove(asked)
            self._answer(batch)

    def _take_waiting(self) -> list[Any]:
        found = []
        while True:
            try:
                found.append(self._waiting.get_nowait())
            except Empty:
                return found

    def _answer(self, batch: Sequence[_Asked]) -> None:
        try:
            with self._lock:
                self._check_model(batch[0].model)  # it may have been unloaded meanwhile
                with torch.inference_mode():
                    answers = self._decode(batch)
        # whoever asked is told, and the next ones are answered
        except Exception as error:  # noqa: BLE001
            for asked in batch:
                asked.answer.set_exception(error)
            return
        for asked, answer in zip(batch, answers, strict=True):
            asked.answer.set_result(answer)

    def _decode(self, batch: Sequence[_Asked]) -> list[Generated]:
        """Decode prompts with the weights they are for."""
        if isinstance(self._model, PeftModel):
            adapter = batch[0].model
            if adapter == self._base:
                with self._model.disable_adapter():
                    return self._decode_padded(batch)
            self._model.set_adapter(adapter)
        return self._decode_padded(batch)

    def _decode_padded(self, batch: Sequence[_Asked]) -> list[Generated]:
        """Decode prompts of different lengths together, padded on the left."""
        longest = max(len(asked.prompt) for asked in batch)
        tokens = torch.tensor(
            [[0] * (longest - len(asked.prompt)) + asked.prompt for asked in batch]
        )
        # Padded on the left, so that the next token of every row is in the last column.
        mask = torch.tensor([[0] * (longest - len(a.prompt)) + [1] * len(a.prompt) for a in batch])
        generators = [_generator(asked.sampling.seed) for asked in batch]
        found: list[tuple[list[int], list[float]]] = [([], []) for _ in batch]
        open_rows, cache = set(range(len(batch))), None
        while open_rows:
            # Positions count from the first real token, so padding changes no answer.
            positions = torch.clamp(mask.cumsum(dim=1) - 1, min=0)[:, -tokens.shape[1] :]
            output = self._model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logprobs = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
            drawn = [
                _draw_token(logprobs[row], asked.sampling, generators[row])
                for row, asked in enumerate(batch)
            ]
            for row in list(open_rows):
                ids, values = found[row]
                ids.append(drawn[row])
                values.append(float(logprobs[row, drawn[row]]))
                if drawn[row] in self._ends or len(ids) >= batch[row].sampling.most:
                    open_rows.remove(row)
            # Rows that have ended go on with the others, and what they draw is not kept.
            tokens = torch.tensor(drawn).unsqueeze(1)
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        return [self._generated_text(ids, values) for ids, values in found]

    def _generated_text(self, ids: list[int], logprobs: list[float]) -> Generated:
        ended = ids[-1] in self._ends
        return Generated(
            ids, logprobs, self.text(ids[:-1] if ended else ids), "stop" if ended else "length"
        )


def _check(model: Any, folder: Path) -> None:
    """Refuse weights that would answer nonsense."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UnloadableError(f"{folder}: {name} holds numbers that are not finite")


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _draw_token(logprobs: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Return a token drawn by temperature and top-p (nucleus sampling: Holtzman et al., 2020,
    arXiv:1904.09751).
    """
    if sampling.temperature == 0.0:
        return int(logprobs.argmax())
    probabilities = torch.softmax(logprobs / sampling.temperature, dim=-1)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        # The mass before a token: so the token that crosses top_p is kept, and one token at least.
        beyond = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        probabilities = torch.zeros_like(probabilities).scatter(
            0, order, ordered.masked_fill(beyond, 0.0)
        )
    return int(torch.multinomial(probabilities, 1, generator=generator))
