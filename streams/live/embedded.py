"""Nothing enters, a broker inside this process leaves: Kafka's protocol without Java, for one run on one machine.

It is librdkafka's mock cluster, which the wheel of confluent-kafka contains. What it is not: it keeps 5 MiB per
partition and drops the oldest without a word, it stamps no append time, it makes no topic through the protocol
(hence `create`), and it is gone with the process. kafka-python must be told `api_version=(2, 3)`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import cimpl

PRODUCER = 0  # RD_KAFKA_PRODUCER; the mock cluster lives beside a client, of whatever kind
REASON_BYTES = 512
API_VERSION = (2, 3)  # for kafka-python, which finds no version it knows by itself


class Refused(Exception):
    """librdkafka would not do it, and why."""


def _library() -> ctypes.CDLL:
    """The symbols of the extension and of the library it is linked with, wherever the wheel keeps that."""
    library = ctypes.CDLL(cimpl.__file__)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("conf_new", pointer, []),
        ("conf_set", number, [pointer, text, text, text, ctypes.c_size_t]),
        ("new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("destroy", None, [pointer]),
        ("err2str", text, [number]),
        ("mock_cluster_new", pointer, [pointer, number]),
        ("mock_cluster_destroy", None, [pointer]),
        ("mock_cluster_bootstraps", text, [pointer]),
        ("mock_topic_create", number, [pointer, text, number, number]),
        ("mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
    ):
        function = getattr(library, f"rd_kafka_{name}")
        function.restype, function.argtypes = result, arguments
    return library


@dataclass(frozen=True)
class EmbeddedBroker:
    """One running mock cluster."""

    bootstrap: str
    library: ctypes.CDLL
    cluster: int

    def create(self, topic: str, partitions: int) -> None:
        error = self.library.rd_kafka_mock_topic_create(self.cluster, topic.encode(), partitions, 1)
        if error:
            raise Refused(f"{topic}: {self.library.rd_kafka_err2str(error).decode()}")


@contextmanager
def embedded() -> Iterator[EmbeddedBroker]:
    """It runs until the block ends."""
    library = _library()
    reason = ctypes.create_string_buffer(REASON_BYTES)
    settings = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set(settings, b"log_level", b"0", reason, REASON_BYTES)
    client = library.rd_kafka_new(PRODUCER, settings, reason, REASON_BYTES)
    if not client:
        raise Refused(reason.value.decode())
    cluster = library.rd_kafka_mock_cluster_new(client, 1)
    try:
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)  # 3 s otherwise, at each start
        yield EmbeddedBroker(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), library, cluster)
    finally:
        library.rd_kafka_mock_cluster_destroy(cluster)
        library.rd_kafka_destroy(client)
