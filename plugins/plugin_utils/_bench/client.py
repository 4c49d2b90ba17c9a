# SPDX-License-Identifier: Apache-2.0
"""The client of the measurements: asks the API, streams completions and keeps when each token arrived.

It runs on the control node and decides nothing: what an answer is worth is judged by plugin_utils/_bench/stream.py.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import parsed
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import Request
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stream import Answer, EventReader, excerpt
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.tokens import Counter, TokenizerError, load_counter

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

CONNECT_LIMIT_S = 30.0
QUESTION_LIMIT_S = 120.0
"""For what the server answers without the engine: /tokenize of 200 000 tokens takes seconds, not minutes."""
PAUSE_S = 0.5
"""Between two looks at /metrics."""


class BenchError(RuntimeError):
    """The measurement cannot continue; the message has the reason.

    :ivar status: HTTP status of the answer that is the reason, or 0.
    """

    def __init__(self, words: str, status: int = 0) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """Where the model is served, and how it is asked.

    ``chat`` chooses /v1/chat/completions or /v1/completions; ``extra`` is merged into each completion's body;
    ``tokenizer`` is a directory to count with where the server has no /tokenize.
    """

    url: str
    model: str
    api_key: str = field(default="", repr=False)
    chat: bool = True
    stall_s: float = 600.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = ""


@dataclass(frozen=True)
class Asked:
    """One completion to ask for. ``at_s`` is when to send it, from the start of its burst on.

    ``system`` is a system message before the prompt (chat only); a ``temperature`` of None leaves the model's own;
    ``more`` is merged into the body last.
    """

    prompt: str
    output_tokens: int
    at_s: float = 0.0
    ignore_eos: bool = True
    request_id: str = ""
    system: str = ""
    temperature: float | None = 0.0
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Heard:
    """A request's times, and what was said.

    ``separated`` says whether the server sent the reasoning apart from the content; ``tool_calls`` has the name and
    the arguments (as sent, JSON in a string) of each call.
    """

    request: Request
    reasoning: str
    content: str
    finish: str
    separated: bool = False
    tool_calls: tuple[Mapping[str, str], ...] = ()


def messages_of(prompt: str, system: str = "") -> list[dict[str, str]]:
    """Return the messages of a request: the system's where there is one, and the user's."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}]


def import_aiohttp() -> Any:
    """Return the HTTP client.

    Raises:
        BenchError: it is not installed on the control node.
    """
    try:
        import aiohttp as client
    except ImportError as error:
        raise BenchError(
            f"The control node's Python has no aiohttp ({error}). Install what requirements.lock lists, "
            "or `pip install aiohttp`."
        ) from error
    return client


class Client:
    """A connection to one endpoint; use `connect`."""

    def __init__(self, endpoint: Endpoint, session: aiohttp.ClientSession, module: Any) -> None:
        self.endpoint = endpoint
        self.started_s = 0.0
        """When the newest burst began, on the machine's clock (time.monotonic)."""
        self._local: Counter | None = None
        self._session = session
        self._aiohttp = module

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.endpoint.api_key}"} if self.endpoint.api_key else {}

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
        """Return the text of an answer that is not streamed.

        Raises:
            BenchError: there is no answer, or its status is not 200.
        """
        limit = self._aiohttp.ClientTimeout(total=QUESTION_LIMIT_S, sock_connect=CONNECT_LIMIT_S)
        url = f"{self.endpoint.url}{path}"
        try:
            async with self._session.request(method, url, json=body, headers=self._headers, timeout=limit) as response:
                text: str = await response.text(errors="replace")
                status = int(response.status)
        except (self._aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BenchError(f"{url} does not answer: {error or type(error).__name__}.") from error
        if status == 401:
            raise BenchError(f"{url} refuses the API key (401): set VLLM_API_KEY, or gb10_api_key, to the server's.")
        if status != 200:
            raise BenchError(f"{url} answered {status}: {excerpt(text)}", status)
        return text

    async def _ask_json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        text = await self._ask(method, path, body)
        found = parsed(text)
        if found is None:
            raise BenchError(f"{self.endpoint.url}{path} answered no JSON: {excerpt(text)}")
        if not isinstance(found, dict):
            raise BenchError(f"{self.endpoint.url}{path} answered no object: {excerpt(text)}")
        return found

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, str, str]:
        """Send JSON and return (status, text, ""), or (0, "", what went wrong) without an answer; nothing is raised.

        Only silence is limited: an answer may wait for others.
        """
        limit = self._aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_LIMIT_S, sock_read=self.endpoint.stall_s, ceil_threshold=1e9
        )
        url = f"{self.endpoint.url}{path}"
        try:
            async with self._session.post(url, json=body, headers=self._headers, timeout=limit) as response:
                return int(response.status), await response.text(errors="replace"), ""
        except (self._aiohttp.ClientError, TimeoutError, OSError) as error:
            return 0, "", excerpt(str(error) or type(error).__name__)

    async def models(self) -> dict[str, Any]:
        """Return what is served: id → max_model_len (None where the server does not tell)."""
        listed = await self._ask_json("GET", "/v1/models")
        return {str(each["id"]): each.get("max_model_len") for each in listed.get("data", [])}

    async def version(self) -> str:
        """Return the engine's version, or an empty string where it does not tell."""
        try:
            return str((await self._ask_json("GET", "/version")).get("version", ""))
        except BenchError:
            return ""

    async def metrics(self) -> str:
        """Return /metrics, or an empty text where there is none."""
        try:
            return await self._ask("GET", "/metrics")
        except BenchError:
            return ""

    async def latency_s(self, mode: str, probes: int = 3) -> float:
        """Return the mean time of a question that costs the engine nothing (``api``) or one token (``generation``).

        As llama-benchy 0.4.0 measures it: GET /v1/models until it is read, or a streamed answer of one token to
        "hello" until its first bytes, three times each. ``none`` is 0.
        """
        if mode == "none":
            return 0.0
        body = self._body(Asked("hello", 1, ignore_eos=False, temperature=None))
        headers = {**self._headers, "Content-Type": "application/json"}
        chat, taken = f"{self.endpoint.url}/v1/chat/completions", list[float]()
        try:
            async with self._open_session(1) as session:
                for _probe in range(probes):
                    begun = time.monotonic()
                    if mode == "api":
                        async with session.get(f"{self.endpoint.url}/v1/models", headers=self._headers) as response:
                            await response.read()
                        taken.append(time.monotonic() - begun)
                    else:
                        async with session.post(chat, data=body, headers=headers) as response:
                            await response.content.readany()
                            taken.append(time.monotonic() - begun)
                            await response.read()
        except (self._aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BenchError(f"The latency ({mode}) cannot be measured: {error or type(error).__name__}.") from error
        return sum(taken) / len(taken)

    async def log(self) -> list[dict[str, Any]]:
        """Return what the server without work kept of its requests; no engine has this."""
        found = json.loads(await self._ask("GET", "/log"))
        return list(found)

    async def count(self, prompt: str, system: str = "") -> int:
        """Return how many tokens the server makes of a prompt (and a system message), its chat template included.

        A frontend without /tokenize (404), such as Dynamo's, is not asked again: the endpoint's tokenizer counts.

        Raises:
            BenchError: the server has no /tokenize and there is no tokenizer here: no prompt has an exact length.
        """
        if self._local is not None:
            return self._local.count(messages_of(prompt, system))
        body: dict[str, Any] = {"model": self.endpoint.model}
        if self.endpoint.chat:
            body.update(messages=messages_of(prompt, system), add_generation_prompt=True)
            if "chat_template_kwargs" in self.endpoint.extra:
                body["chat_template_kwargs"] = self.endpoint.extra["chat_template_kwargs"]
        else:
            body["prompt"] = prompt
        try:
            answer = await self._ask_json("POST", "/tokenize", body)
        except BenchError as error:
            if error.status != 404:
                raise
            self._local = self._counter()
            return self._local.count(messages_of(prompt, system))
        return int(answer["count"])

    def _counter(self) -> Counter:
        try:
            return load_counter(self.endpoint.tokenizer, self.endpoint.chat, self.endpoint.extra)
        except TokenizerError as error:
            raise BenchError(
                f"{self.endpoint.url} has no /tokenize, and its tokens cannot be counted here: {error}"
            ) from error

    async def converse(
        self, fitting: Generator[str, int, T], count: Callable[[str], Awaitable[int]] | None = None
    ) -> T:
        """Run a search for a prompt (plugin_utils/_bench/prompt.py) with the server's counts; return what it found.

        :param count: counts a text in its place, e.g. as a system message; by default as the prompt alone.
        """
        counted = count or self.count
        try:
            text = next(fitting)
            while True:
                text = fitting.send(await counted(text))
        except StopIteration as found:
            value: T = found.value
            return value

    def _body(self, asked: Asked) -> bytes:
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "max_tokens": asked.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if asked.temperature is not None:
            body["temperature"] = asked.temperature
        if asked.ignore_eos:
            body["ignore_eos"] = True
        if self.endpoint.chat:
            body["messages"] = messages_of(asked.prompt, asked.system)
        else:
            body["prompt"] = asked.prompt
        body.update(self.endpoint.extra)
        body.update(asked.more)
        return json.dumps(body).encode()

    async def _complete(
        self,
        session: aiohttp.ClientSession,
        number: int,
        asked: Asked,
        body: bytes,
        on_tokens: Callable[[int], None] | None,
    ) -> Heard:
        """Send one completion and hear it out. Nothing is raised: what goes wrong is the result."""
        start_s = self.started_s
        answer, reader = Answer(), EventReader()
        path = "/v1/chat/completions" if self.endpoint.chat else "/v1/completions"
        headers = {**self._headers, "Content-Type": "application/json", "X-Request-Id": asked.request_id}
        limit = self._aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_LIMIT_S, sock_read=self.endpoint.stall_s, ceil_threshold=1e9
        )
        sent_s = time.monotonic() - start_s
        connected = False
        try:
            async with session.post(
                f"{self.endpoint.url}{path}", data=body, headers=headers, timeout=limit
            ) as response:
                connected = True
                if response.status != 200:
                    text = await response.text(errors="replace")
                    answer.fail("http", f"{response.status}: {excerpt(text)}")
                else:
                    async for received in response.content.iter_any():
                        at_s = time.monotonic() - start_s
                        before = len(answer.gaps_s)
                        for data in reader.feed(received):
                            answer.take(data, at_s)
                        if on_tokens is not None and len(answer.gaps_s) > before:
                            on_tokens(len(answer.gaps_s) - before)
        except self._aiohttp.ServerDisconnectedError:
            answer.fail("cut", "the server closed the connection before it answered")
        except self._aiohttp.SocketTimeoutError:
            answer.fail("stalled", f"nothing for {self.endpoint.stall_s:g} s after {answer.chunks} chunks")
        except (self._aiohttp.ClientError, OSError, TimeoutError) as error:
            words = excerpt(str(error) or type(error).__name__)
            if connected:
                answer.fail("cut", f"after {answer.chunks} chunks: {words}")
            else:
                answer.fail("unreachable", words)
        if not answer.failure:
            answer.close(reader.unfinished)
        now_s = time.monotonic() - start_s
        reasoning, content = answer.said
        request = Request(
            number=number,
            sent_s=sent_s,
            ended_s=now_s if answer.failure or answer.last_s is None else answer.last_s,
            first_s=answer.first_s,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            gaps_s=tuple(answer.gaps_s),
            failure=answer.failure,
            detail=answer.detail,
            notes=tuple(answer.notes),
            response_s=answer.response_s,
            chunk_tokens=tuple(each for each in answer.token_ids if each is not None)
            if None not in answer.token_ids
            else (),
        )
        calls = tuple(call for _index, call in sorted(answer.tool_calls.items()))
        return Heard(request, reasoning, content, answer.finish, bool("".join(answer.reasoning)), calls)

    @asynccontextmanager
    async def _open_session(self, connections: int) -> AsyncIterator[aiohttp.ClientSession]:
        """Yield a session with this many connections open; with none, each request opens its own.

        A connection that idles could be closed by the server just when a request is sent on it, which would look like a
        failed request: so these are opened right before their burst, and closed with it.
        """
        connector = self._aiohttp.TCPConnector(limit=0, force_close=not connections)
        async with self._aiohttp.ClientSession(
            connector=connector, read_bufsize=2**18, auto_decompress=False
        ) as session:

            async def open_one() -> None:
                async with session.get(f"{self.endpoint.url}/v1/models", headers=self._headers) as response:
                    await response.read()

            # What fails here fails again, and is counted, in the burst.
            await asyncio.gather(*(open_one() for _each in range(connections)), return_exceptions=True)
            yield session

    async def burst(
        self,
        wanted: Sequence[Asked],
        *,
        at_most: int | None = None,
        on_tokens: Callable[[int], None] | None = None,
        on_end: Callable[[Heard], None] | None = None,
    ) -> list[Heard]:
        """Send completions together, each at its time, and hear all of them out.

        All bodies are made and all connections opened beforehand, and every request waits at one barrier, so that the
        first is not ahead of the last. With ``at_most``, no more than that many are under way at once.
        """
        bodies = [self._body(asked) for asked in wanted]
        barrier = asyncio.Event()
        gate = asyncio.Semaphore(at_most or len(wanted) or 1)
        together = at_most is None and not any(asked.at_s for asked in wanted)

        async def one(session: aiohttp.ClientSession, number: int, asked: Asked, body: bytes) -> Heard:
            await barrier.wait()
            delay_s = self.started_s + asked.at_s - time.monotonic()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            async with gate:
                heard = await self._complete(session, number, asked, body, on_tokens)
            if on_end is not None:
                on_end(heard)
            return heard

        async with self._open_session(len(wanted) if together else 0) as session:
            tasks = [
                asyncio.create_task(one(session, number, asked, body))
                for number, (asked, body) in enumerate(zip(wanted, bodies, strict=True))
            ]
            await asyncio.sleep(0)
            self.started_s = time.monotonic()
            barrier.set()
            return list(await asyncio.gather(*tasks))


@asynccontextmanager
async def connect(endpoint: Endpoint) -> AsyncIterator[Client]:
    """Open a client of an endpoint."""
    module = import_aiohttp()
    # trust_env stays off: the nodes are reached directly, no proxy leads to them.
    async with module.ClientSession(connector=module.TCPConnector(limit=0, force_close=True)) as session:
        yield Client(endpoint, session, module)
