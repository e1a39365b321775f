"""Valid requests, and what makes hostile ones of them."""

import asyncio
import random
import string
from typing import Any

import orjson


def valid_requests() -> list[bytes]:
    chat = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "tools": [],
    }
    reward = {"rollout_id": "r1", "value": 0.5, "criteria": {"a": 0.1}, "idempotency_key": "k"}
    decision = {
        "rollout_id": "r1",
        "policy": "supervisor-policy",
        "candidates": [{"text": "a", "numbers": {"x": 1}}],
    }
    span = {
        "traceId": "a" * 32,
        "spanId": "b" * 16,
        "name": "x",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
    }
    traces = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    bodies: list[tuple[str, str, Any]] = [
        ("POST", "/v1/chat/completions", chat),
        ("POST", "/v1/completions", {"model": "tiny", "prompt": "x"}),
        ("POST", "/v1/responses", {"model": "tiny", "input": [{"role": "user", "content": "x"}]}),
        ("POST", "/v1/embeddings", {"model": "tiny", "input": ["x"]}),
        ("POST", "/rollout/r1/v1/chat/completions", chat),
        ("POST", "/everloop/v1/rewards", reward),
        ("POST", "/everloop/v1/rewards/bulk", [reward]),
        ("POST", "/everloop/v1/decisions", decision),
        (
            "POST",
            "/everloop/v1/rollouts",
            {"rollout_id": "r1", "task": {"id": "t", "input": {"a": [1]}}},
        ),
        ("POST", "/everloop/v1/rollouts/r1/end", {"state": "succeeded", "output": {"a": 1}}),
        ("POST", "/v1/traces", traces),
        ("POST", "/api/rollouts", [{"input": "x", "rollout_id": "r2"}]),
        ("PATCH", "/api/rollouts/r2", {"status": {"state": "running"}}),
        ("POST", "/api/rollouts/r2/attempt/0/events", {"event_type": "note", "data": {"a": 1}}),
        ("GET", "/api/rollouts?state_in=queuing&limit=5", None),
        ("GET", "/v1/models", None),
    ]
    return [
        request(method, path, b"" if body is None else orjson.dumps(body))
        for method, path, body in bodies
    ]


def request(method: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    fields = {"host": "x", "content-type": "application/json", "content-length": str(len(body))} | (
        headers or {}
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode() + body


HOSTILE_VALUES = [
    *b"null true -1 1e999 0.1e-400 99999999999999999999999 [] {} NaN Infinity 1.0".split(),
    b'""',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\\x41"',
    b'"\xff\xfe"',
    b'"../../etc/passwd"',
    b'"; DROP TABLE records; --"',
    b'{"$ref": "#"}',
    b"[null, [null]]",
    b'"' + b"A" * 5000 + b'"',
    b"[" * 200 + b"]" * 200,
    b'{"a":' * 150 + b"1" + b"}" * 150,
]
ODD_HEADERS = [
    b"x-everloop-rollout-id: \xff\xfe",
    b"x-everloop-rollout-id: " + b"a" * 300,
    b"x-everloop-node: a b",
    b"traceparent: 00-zz-yy-01",
    b"authorization: Bearer evl_000000000000_x",
    b"authorization: Bearer \xff",
    b"content-encoding: gzip",
    b"transfer-encoding: chunked",
    b"content-type: text/plain",
    b"content-type: application/json; charset=utf-16",
    b"expect: 100-continue",
    b"upgrade: websocket",
    b"x: " + b"y" * 40_000,
]
METHODS = [b"GET", b"PUT", b"DELETE", b"OPTIONS", b"BREW", b"", b"POST\x00"]
PATHS = [b"/", b"/v1/" + b"a" * 9000, b"/%00", b"/..%2f..", b"//", b"/v1/chat/completions/", b"*"]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b"FTP/1.1"]


def mutated(source: bytes, chance: random.Random) -> bytes:
    """Return a request with something wrong in it, most likely."""
    head, _, body = source.partition(b"\r\n\r\n")
    match chance.randrange(10):
        case 0:  # a byte is another one
            place = chance.randrange(len(source))
            return source[:place] + bytes([chance.randrange(256)]) + source[place + 1 :]
        case 1:  # cut off
            return source[: chance.randrange(1, len(source))]
        case 2:  # more body than said, or less
            said = b"content-length: %d" % chance.randrange(1, 9)
            return head.replace(b"content-length: ", said) + b"\r\n\r\n" + body
        case 3:  # a value is replaced by a hostile one
            places = [i for i in range(len(body)) if body[i : i + 1] == b":"]
            if places:
                place = chance.choice(places) + 1
                end = min(
                    i for i in (body.find(b",", place), body.find(b"}", place), len(body)) if i >= 0
                )
                body = body[:place] + chance.choice(HOSTILE_VALUES) + body[end:]
        case 4:  # a whole body of something else
            body = chance.choice(HOSTILE_VALUES)
        case 5:  # odd headers
            return head + b"\r\n" + chance.choice(ODD_HEADERS) + b"\r\n\r\n" + body
        case 6:  # many headers
            more = b"".join(b"\r\nx-%d: y" % n for n in range(chance.choice([99, 150, 2000])))
            return head + more + b"\r\n\r\n" + body
        case 7:  # another method or path
            line = b" ".join(
                (chance.choice(METHODS), chance.choice(PATHS), chance.choice(VERSIONS))
            )
            head = line + head[head.index(b"\r\n") :]
        case 8:  # garbage in front
            return bytes(chance.randrange(256) for _ in range(chance.randrange(1, 60))) + source
        case 9:  # letters where there were digits, and the other way about
            letters = string.ascii_letters + string.digits
            body = bytes(
                ord(chance.choice(letters)) if chance.random() < 0.1 else byte for byte in body
            )
    fields = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
    return b"\r\n".join([*fields, b"content-length: %d" % len(body)]) + b"\r\n\r\n" + body


async def sent(port: int, content: bytes) -> bytes:
    """Return what comes back before the gateway closes, or nothing more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(content)
        await writer.drain()
        async with asyncio.timeout(1):
            return await reader.read()
    except (ConnectionError, TimeoutError):
        return b""
    finally:
        writer.close()
