"""A model that sees learns from images with labels, and gives the right label to each."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from learners.datasets import Origin, SftRow
from learners.training.config import MODEL
from learners.training.errors import TrainingError
from learners.training.runs import run
from learners.training.vision import vision_rows
from schemas.examples import Example, ExampleEvent, SftExample
from schemas.identifiers import derived_event_id
from tests import events
from tests.training.test_trainers import config, quiet
from tests.training.tiny import make_model

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
QUESTION = "what colour is it?"
TEMPLATE = (
    "{%- for message in messages -%}<|{{ message.role }}|>"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<image>{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}<|end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@pytest.fixture
def eye(tmp_path: Path) -> Path:
    """Return an untrained model that takes pictures of 16 by 16 pixels."""
    corpus = [f"<|user|>{QUESTION}<|end|>\n<|assistant|>{colour}<|end|>" for colour in COLOURS]
    tokenizer = AutoTokenizer.from_pretrained(
        make_model(tmp_path / "words", corpus=corpus, vocabulary=320)
    )
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    words = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=words,
            image_token_index=image,
            vision_feature_layer=-1,
        )
    )
    model.save_pretrained(tmp_path / "eye")
    processor.save_pretrained(tmp_path / "eye")
    return tmp_path / "eye"


def picture(colour: str) -> str:
    """Return a picture of one colour as a data URL."""
    content = BytesIO()
    Image.new("RGB", (16, 16), COLOURS[colour]).save(content, "png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def asked(url: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]


def labelled(number: int, colour: str) -> ExampleEvent:
    source = derived_event_id(events.at(0), "picture", str(number))
    messages = [*asked(picture(colour)), {"role": "assistant", "content": colour}]
    example = Example(
        target="writer",
        task_id=f"{colour}-{number}",
        reward=1.0,
        reward_revision=1,
        source_event_ids=[source],
        body=SftExample(node=f"n{number}", messages=messages),
    )
    return ExampleEvent(event_id=source, rollout_id="r", time=events.at(0), payload=example)


def test_it_learns_what_is_in_a_picture(eye: Path, tmp_path: Path) -> None:
    examples = [labelled(number, colour) for number, colour in enumerate(COLOURS)]
    settings = config(eye, "sft", special_tokens=[], steps=60, batch=3, micro_batch=3)
    metrics = run(examples, settings, None, {}, tmp_path / "run", quiet)
    assert metrics["rows"] == 3
    folder = tmp_path / "run" / MODEL
    processor, model = (
        AutoProcessor.from_pretrained(folder),
        AutoModelForImageTextToText.from_pretrained(folder),
    )
    for colour, rgb in COLOURS.items():
        parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        given = processor(text=text, images=[Image.new("RGB", (16, 16), rgb)], return_tensors="pt")
        said = model.generate(**given, max_new_tokens=4, do_sample=False)[
            0, given["input_ids"].shape[1] :
        ]
        assert processor.tokenizer.decode(said, skip_special_tokens=True).strip() == colour


def test_other_methods_do_not_see(eye: Path, tmp_path: Path) -> None:
    examples = [labelled(0, "red")]
    with pytest.raises(TrainingError, match="which only sft can train; the method is dpo"):
        run(examples, config(eye, "dpo"), None, {}, tmp_path / "run", quiet)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/red.png",
        "data:image/png;base64,@@@",
        "data:image/png;base64,AAAA",
        "data:text/plain,x",
    ],
)
def test_what_is_not_in_the_row_is_left_out(url: str) -> None:
    origin = Origin("default", "n", "t", held_out=False, event_ids=("e",))
    rows = [
        SftRow([*asked(url), {"role": "assistant", "content": "red"}], [], 1.0, origin),
        SftRow(
            [{"role": "user", "content": "no picture"}, {"role": "assistant", "content": "red"}],
            [],
            1.0,
            origin,
        ),
        SftRow([*asked(picture("red")), {"role": "assistant", "content": "red"}], [], 1.0, origin),
    ]
    (row,) = vision_rows(rows, held_out=False)
    assert [part["type"] for part in row["prompt"][0]["content"]] == ["image", "text"]
    assert row["images"][0].getpixel((0, 0)) == COLOURS["red"]
    assert vision_rows(rows, held_out=True) == []
