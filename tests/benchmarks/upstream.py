"""The model server behind the benchmarks: the test server, in a process of its own."""

import argparse
import socket

from infra.http import serve
from tests.infra.upstream import Upstream

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    serve(Upstream().app, socket.socket(fileno=parser.parse_args().fd))
