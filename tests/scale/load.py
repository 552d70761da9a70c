"""Clients that send photographs continuously, check every answer, and retry requests that fail."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

# Model → photograph → class id and probability of the right answer.
Answers = Mapping[str, Mapping[str, tuple[str, float]]]
TRIES = 40
PAUSE_SECONDS = 0.25
_SAME = 1e-3


@dataclass
class Account:
    """The requests of one phase.

    Attributes:
        answered: Requests that were answered.
        retried: Attempts that failed and were repeated.
        wrong: Answers that were wrong.
        lost: Requests of which all attempts failed.
        seconds: Length of the phase.
        models: Model → number of answers.
        failures: Reason → number of failed attempts.
    """

    answered: int = 0
    retried: int = 0
    wrong: int = 0
    lost: int = 0
    seconds: float = 0.0
    models: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)


class Load:
    """Sends requests from `clients` threads to one address, and retries failed ones, as a cluster's clients must."""

    def __init__(self, url: str, photos: Mapping[str, bytes], answers: Answers, clients: int = 8) -> None:
        self._address = urlsplit(url).netloc
        self._photos = list(photos.items())
        self._answers = answers
        self._lock = threading.Lock()
        self._account = Account()
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def phase(self) -> Account:
        """Returns the account since the last call and starts a new one."""
        with self._lock:
            done, self._account = self._account, Account()
            now = time.monotonic()
            done.seconds, self._began = now - self._began, now
        return done

    def _send(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        while not self._stop.is_set():
            name, data = self._photos[number % len(self._photos)]
            number += 1
            for _ in range(TRIES):
                failure = self._try(connection, name, data)
                if not failure:
                    break
                connection.close()
                with self._lock:
                    self._account.retried += 1
                    self._account.failures[failure] += 1
                time.sleep(PAUSE_SECONDS)
            else:
                with self._lock:
                    self._account.lost += 1
        connection.close()

    def _try(self, connection: http.client.HTTPConnection, name: str, data: bytes) -> str:
        """Sends one request and counts its answer; returns why it failed, "" if it did not."""
        try:
            connection.request("POST", "/upload", data, {"Content-Type": "image/jpeg"})
            reply = connection.getresponse()
            body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        if reply.status != 200:
            return str(reply.status)
        try:
            told = json.loads(body)
            model = told["model"]
            wanted, probability = self._answers[model][name]
            right = told["imagenet_id"] == wanted and abs(told["probability"] - probability) < _SAME
        except (ValueError, KeyError, TypeError):
            model, right = "?", False
        with self._lock:
            self._account.answered += 1
            self._account.models[model] += 1
            self._account.wrong += not right
        return ""
