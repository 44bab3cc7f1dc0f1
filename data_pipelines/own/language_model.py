"""Asks a language model for sentences of attributes, through any server that speaks OpenAI's interface.

Several requests are under way at a time. Every answer is kept with its prompt in a file of JSON lines, from which the
same command goes on. Nothing but attributes is sent. An answer from which other attributes are read back than it was
asked for (`instructions.read_back`) is refused and asked for again, with what was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from data_pipelines.errors import RetryError, UserError, pip_line
from data_pipelines.files import LockedError, write_failure
from data_pipelines.instructions import read_back

Attributes = tuple[tuple[str, str], ...]
MOST_WORDS = 40
_MOST_TOKENS = 2000  # of an answer, thoughts included
_SYSTEM = (
    "You write instructions for a search for people in pictures. You answer with exactly one English sentence and "
    "nothing else."
)


class LanguageModelError(UserError, ValueError):
    """Reports a server or model that cannot answer as it is; the message names the cause and the cure."""


class NoAnswer(RetryError, OSError):
    """Reports a server that does not answer now; what it has answered is kept."""


@dataclasses.dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Attributes:
      url, model: of the server, as http://localhost:8000/v1, and the model's name there.
      requests: how many are under way at a time.
      timeout: seconds that one request may take. tries: answers that are asked for before a sentence is given up.
      temperature: of the sampling; the seed is the sentence's number.
      key: of the server; the environment variable OPENAI_API_KEY.
    """

    url: str
    model: str
    requests: int = 8
    timeout: float = 60.0
    tries: int = 3
    temperature: float = 0.7
    key: str = dataclasses.field(default_factory=lambda: os.environ.get("OPENAI_API_KEY") or "none", repr=False)


@dataclasses.dataclass(frozen=True)
class Wish:
    """One sentence to be written: the `number`-th of `count` for the same attributes."""

    attributes: Attributes
    number: int
    count: int


def first_prompt(wish: Wish) -> list[dict[str, str]]:
    """Returns the messages that ask for a sentence; they hold attributes and nothing else of the table."""
    lines = [f"- {slot}: {value}" for slot, value in wish.attributes]
    absent = (
        "; where it is none, say that there is none" if any(value == "none" for _, value in wish.attributes) else ""
    )
    text = "\n".join(
        [
            "Write one sentence that asks to find a person who wears or carries this:",
            *lines,
            f"Name each of them in these words, colour and pattern directly before the garment{absent}.",
            "Add nothing else: no other colour, garment or thing, no hair, age, build or gender.",
            f"At most 25 words. This is wording {wish.number + 1} of {wish.count}; make each wording a different one.",
        ]
    )
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]


def next_prompt(prompt: Sequence[dict[str, str]], answer: str, problem: str) -> list[dict[str, str]]:
    """Returns the messages that ask again: the first ones, the last answer, and what was wrong with it."""
    again = f"That says something else: {problem}. Write the sentence again."
    return [*prompt[:2], {"role": "assistant", "content": answer[:500]}, {"role": "user", "content": again}]


def sentence_of(answer: str) -> str:
    """Returns the sentence of an answer: without a model's thoughts, quotes around it, and line ends."""
    text = re.sub(r"<think>.*?</think>", " ", answer, flags=re.DOTALL)
    text = " ".join(text.split())
    return text.strip().strip("\"'“”„*` ").strip()


def problem_of(answer: str, attributes: Attributes, values: Mapping[str, Sequence[str]]) -> str:
    """Returns what is wrong with an answer in words, "" if its sentence says the attributes and nothing else."""
    text = sentence_of(answer)
    if not text:
        return "it is empty"
    if "|" in text:
        return "it has the sign |"
    if len(text.split()) > MOST_WORDS:
        return f"it has more than {MOST_WORDS} words"
    return read_back.differences(text, dict(attributes), values)


class Answers:
    """The file of answers, one JSON object a line: key, prompt, answer, sentence's problem ("" where it is taken)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._known: dict[str, str] = {}
        file.seek(0)
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break  # of a killed process
            whole += len(line)
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._known[entry["key"]] = str(entry["answer"])
        file.seek(whole)
        file.truncate()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def add(self, key: str, answer: str, **more: Any) -> None:
        line = json.dumps({"key": key, **more, "answer": answer}, ensure_ascii=True) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        self._known[key] = answer


@contextlib.contextmanager
def kept_answers(path: Path) -> Iterator[Answers]:
    """Opens the file of answers, which one process at a time writes. Raises LockedError if another one does."""
    try:
        path.touch()
        with open(path, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(f"another process writes {path}: wait until it ends, or end it") from None
            yield Answers(file)
    except (UserError, RetryError):
        raise
    except OSError as error:
        raise write_failure(path, error) from error


def ask(
    asking: Asking,
    wishes: Sequence[Wish],
    values: Mapping[str, Sequence[str]],
    answers: Answers,
    done: Callable[[Wish, str | None, int], None],
) -> None:
    """Has every sentence written, and calls `done` for each: wish, sentence (None if none was right), answers needed.

    Raises:
      LanguageModelError: the server refuses the requests, or answers something else than a chat.
      NoAnswer: the server is not there, or too slow. What is answered is kept in `answers`.
    """
    try:
        import openai
    except ImportError as error:
        raise LanguageModelError(
            f"--llm needs a library that is missing here: {pip_line('llm')} (without --llm, templates write)"
        ) from error
    if not re.match(r"https?://[^/]", asking.url):
        raise LanguageModelError(f"{asking.url!r} is no address of a server: give one as http://localhost:8000/v1")
    try:
        asyncio.run(_ask_all(openai, asking, wishes, values, answers, done))
    except BaseExceptionGroup as group:  # of several requests that failed at once
        known = group.subgroup((UserError, RetryError))
        raise (known or group).exceptions[0] from None


async def _ask_all(
    openai: Any,
    asking: Asking,
    wishes: Sequence[Wish],
    values: Mapping[str, Sequence[str]],
    answers: Answers,
    done: Callable[[Wish, str | None, int], None],
) -> None:
    waiting = iter(wishes)
    async with openai.AsyncOpenAI(base_url=asking.url, api_key=asking.key, timeout=asking.timeout) as client:

        async def request(messages: list[dict[str, str]], seed: int) -> str:
            return await _request(openai, client, asking, messages, seed)

        async def work() -> None:
            for wish in waiting:  # shared by all workers
                sentence, needed = await _write(asking, wish, values, answers, request)
                done(wish, sentence, needed)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(asking.requests, len(wishes))):
                group.create_task(work())


async def _write(
    asking: Asking, wish: Wish, values: Mapping[str, Sequence[str]], answers: Answers, request: Any
) -> tuple[str | None, int]:
    """Returns a sentence for the wish, None if no answer is right, and how many answers that took."""
    prompt = messages = first_prompt(wish)
    for attempt in range(asking.tries):
        stated = [asking.model, asking.temperature, wish.number, attempt, messages]
        key = hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:32]
        answer = answers.get(key)
        new = answer is None
        if answer is None:
            answer = await request(messages, wish.number + 1000 * attempt)
        problem = problem_of(answer, wish.attributes, values)
        if new:
            answers.add(key, answer, model=asking.model, prompt=messages, problem=problem)
        if not problem:
            return sentence_of(answer), attempt + 1
        messages = next_prompt(prompt, answer, problem)
    return None, asking.tries


async def _request(openai: Any, client: Any, asking: Asking, messages: list[dict[str, str]], seed: int) -> str:
    """Returns one answer, "" for an empty one; the client itself tries twice more where a server fails."""
    again = "What it has answered is kept: run the same command again"
    try:
        reply = await client.chat.completions.create(
            model=asking.model, messages=messages, temperature=asking.temperature, seed=seed,
            max_completion_tokens=_MOST_TOKENS,
        )  # fmt: skip
        return str(reply.choices[0].message.content or "")
    except openai.APITimeoutError as error:
        raise NoAnswer(
            f"{asking.url} does not answer within {asking.timeout:g} s. {again}, with fewer --requests or a longer "
            "--timeout if it is slow"
        ) from error
    except openai.APIConnectionError as error:
        raise NoAnswer(f"{asking.url} does not answer ({error.__cause__ or error}): is it running? {again}") from error
    except openai.APIStatusError as error:
        said = " ".join(str(error.message).split())[:300]
        if error.status_code in (408, 409, 429) or error.status_code >= 500:
            raise NoAnswer(f"{asking.url} fails ({said}). {again}, with fewer --requests if it is busy") from error
        raise LanguageModelError(
            f"{asking.url} refuses the request ({said}): correct --llm (it often ends in /v1) or --model, or set "
            "OPENAI_API_KEY"
        ) from error
    except (openai.OpenAIError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise LanguageModelError(
            f"{asking.url} does not answer as OpenAI's chat interface does ({type(error).__name__}): correct --llm (it "
            "often ends in /v1)"
        ) from error
