"""Conversations with images, in the form that TRL's trainer takes for vision models."""

import base64
import binascii
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError

from learners.datasets import SftRow

ContentPart = dict[str, Any]


def vision_rows(rows: Sequence[SftRow], held_out: bool) -> list[dict[str, Any]]:
    """Return the rows that a vision model can learn from; the last answer is the label.

    Rows without images are left out, and rows with tools, which TRL's collator cannot take. A run
    reads nothing but its manifest, so an image must be in the row as a `data:` URL (base64, any
    format that Pillow reads). Rows with other images are left out too.

    Returns:
        Dictionaries with `prompt` and `completion` in parts, and `images`, one for each part of
            type `image`.
    """
    usable = []
    for row in rows:
        if row.origin.held_out is not held_out or row.tools:
            continue
        images: list[Image.Image] = []
        try:
            messages = [
                {"role": m["role"], "content": _parts(m.get("content"), images)}
                for m in row.messages
            ]
        except _UnreadableError:
            continue
        if images:
            usable.append({"prompt": messages[:-1], "completion": messages[-1:], "images": images})
    return usable


class _UnreadableError(Exception):
    """A part of a message is neither a text nor an image in the row."""


def _parts(content: Any, images: list[Image.Image]) -> list[ContentPart]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[ContentPart] = []
    for part in content or ():
        if part.get("type") == "text":
            parts.append({"type": "text", "text": part["text"]})
        elif part.get("type") == "image_url":
            # In the order of the parts: TRL matches images and parts by it.
            images.append(_image(part["image_url"]))
            parts.append({"type": "image", "text": None})
        else:
            raise _UnreadableError
    return parts


def _image(reference: Any) -> Image.Image:
    url = reference.get("url") if isinstance(reference, dict) else reference
    head, comma, data = str(url).partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise _UnreadableError
    try:
        return Image.open(BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError) as error:
        raise _UnreadableError from error
