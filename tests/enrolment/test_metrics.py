# SPDX-License-Identifier: Apache-2.0
import asyncio
import threading
import time

import pytest
import requests
import uvicorn
from fastapi import FastAPI

from ucadi.enrolment.metrics import CONTENT_TYPE, metrics_router


@pytest.fixture
def app():
    """An interface with the numbers and nothing else."""
    made = FastAPI()
    made.include_router(metrics_router(lambda: b"ucadi_runs 1\n"))
    return made


@pytest.fixture
def address(app):
    """Where a real server answers."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_this_machine_reads_the_numbers_in_prometheus_format(address):
    answer = requests.get(f"{address}/metrics", timeout=10)
    assert (answer.status_code, answer.text) == (200, "ucadi_runs 1\n")
    assert answer.headers["content-type"] == CONTENT_TYPE


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_what_a_proxy_passes_on_is_not_answered(address, header):
    answer = requests.get(f"{address}/metrics", headers={header: "for=192.0.2.1"}, timeout=10)
    assert (answer.status_code, answer.text) == (404, "")


@pytest.mark.parametrize(
    ("client", "status"),
    [
        (("127.0.0.1", 1), 200),
        (("::1", 1), 200),
        (("192.0.2.1", 1), 404),
        (("10.0.0.7", 1), 404),
        (("nonsense", 1), 404),
        (None, 404),
    ],
)
def test_only_clients_on_this_machine_are_answered(app, client, status):
    sent = []

    async def ask():
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/metrics",
            "raw_path": b"/metrics",
            "query_string": b"",
            "headers": [],
            "client": client,
        }

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == status
