"""HTTP to a vLLM server."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

START = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL "
    """--weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs"""
)
_RETRY = 2.0  # seconds between two looks at a server that is not up
_LOOK = 5.0  # seconds that one look may take


class HttpError(RuntimeError):
    """A server's answer other than 200."""

    def __init__(self, base_url: str, path: str, status: int, body: str) -> None:
        super().__init__(f"the vLLM server at {base_url} answered {path} by {status}: {body[:500]}")
        self.status = status


class Http:
    """One server's endpoints.

    Args:
        base_url: such as http://localhost:8000.
    """

    def __init__(self, base_url: str) -> None:
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"vllm_server_base_url={base_url!r} is no URL; give one such as "
                "http://localhost:8000"
            )
        self.base_url = base_url.rstrip("/")

    def get(self, path: str) -> Any:
        """The JSON at a path.

        Raises:
            HttpError: for an answer other than 200.
            ConnectionError: without any.
        """
        return self._json(path, None, None)

    def post(self, path: str, body: Any) -> Any:
        """What the server makes of a JSON body, however long it takes; None: an empty answer.

        Raises:
            HttpError: for an answer other than 200.
            ConnectionError: without any.
        """
        return self._json(path, json.dumps(body).encode(), None)

    def wait(self, timeout: float) -> None:
        """Return once the server is up.

        Args:
            timeout: seconds, after which this gives up.

        Raises:
            ConnectionError: it did not come up; says how to start one.
            HttpError: something else than vLLM answered.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                self._json("/health", None, _LOOK)
                return
            except HttpError as error:
                if error.status < 500:
                    raise
                reason = str(error)
            except ConnectionError as error:
                reason = str(error)
            left = end - time.monotonic()
            if left <= 0:
                raise ConnectionError(
                    f"no vLLM server at {self.base_url} within vllm_server_timeout={timeout:g} "
                    f"seconds ({reason}); start one with: {START}"
                )
            time.sleep(min(_RETRY, left))

    def _json(self, path: str, body: bytes | None, timeout: float | None) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.base_url + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")
            raise HttpError(self.base_url, path, error.code, told) from None
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            raise ConnectionError(f"{self.base_url}{path}: {error}") from error
        return json.loads(text) if text.strip() else None
