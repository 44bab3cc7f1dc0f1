"""`python -m data_pipelines.sentences`, against a chat server on this machine (chat_server.py)."""

from __future__ import annotations

import csv
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer

from data_pipelines import sentences
from data_pipelines.errors import DatasetError
from data_pipelines.files import LockedError
from data_pipelines.own import language_model
from data_pipelines.own.language_model import LanguageModelError, NoAnswer
from data_pipelines.sources import table, table_files

ROWS = (
    ("a.jpg", "ann", "gate", "upper colour=red; bag=none"),
    ("b.jpg", "ann", "hall", "upper colour=blue; bag=backpack"),
    ("c.jpg", "bob", "gate", "bag=none; upper colour=red"),
    ("d.jpg", "bob", "hall", ""),
)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    lines = ["image,identity,camera,attributes", *map(",".join, ROWS)]
    (tmp_path / "crops.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "crops.csv"


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], Any]], ChatServer]]:
    pytest.importorskip("openai", reason="needs pip install -e '.[llm]'")
    import contextlib

    with contextlib.ExitStack() as stack:
        yield lambda answer: stack.enter_context(ChatServer(answer).running())


def well(body: dict[str, Any]) -> str:
    """Says what the prompt lists, in different words for each number."""
    asked = body["messages"][1]["content"]
    worn = dict(re.findall(r"^- (.+): (.+)$", asked, re.MULTILINE))
    number = int(re.search(r"wording (\d+)", asked)[1])
    bag = "no bag" if worn["bag"] == "none" else f"a {worn['bag']}"
    return f'"Find the one in a {worn["upper colour"]} {("shirt", "top", "coat")[number - 1]} with {bag}."'


def run(crops: Path, *options: str) -> list[dict[str, str]]:
    assert sentences.main(["--table", str(crops), *options]) == 0
    with open(crops.with_name("crops_sentences.csv"), newline="") as file:
        return list(csv.DictReader(file))


def model_options(server: ChatServer, *more: str) -> tuple[str, ...]:
    return ("--llm", server.url, "--model", "m", "--timeout", "5", *more)


def answers(crops: Path) -> list[dict[str, Any]]:
    path = crops.with_name("crops_sentences.csv.answers.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_that_answers_well(crops: Path, serve: Callable[..., ChatServer]) -> None:
    meeting = threading.Barrier(3)

    def together(body: dict[str, Any]) -> str:
        meeting.wait(20)
        return well(body)

    server = serve(together)
    rows = run(crops, *model_options(server, "--requests", "3"))
    assert server.most == 3
    assert len(server.requests) == 6  # two sets of attributes, three sentences each
    red = "|".join(f"Find the one in a red {noun} with no bag." for noun in ("shirt", "top", "coat"))
    assert [row["instruction"] for row in rows] == [red, red.replace("red", "blue").replace("no", "a").replace(
        "a bag", "a backpack"), red, ""]  # fmt: skip
    assert [row["instruction_by"] for row in rows] == ["m", "m", "m", ""]
    assert [tuple(row[name] for name in ("image", "identity", "camera")) for row in rows] == [row[:3] for row in ROWS]
    # Nothing but attributes is sent, and each answer is kept with its prompt.
    sent = json.dumps(server.requests)
    assert not any(text in sent for text in (".jpg", "ann", "bob", "gate", "hall", "crops"))
    assert {json.dumps(entry["prompt"]) for entry in answers(crops)} == {
        json.dumps(r["messages"]) for r in server.requests
    }
    assert {entry["answer"][:9] for entry in answers(crops)} == {'"Find the'}


def test_wrong_sentences_are_asked_for_again_and_then_replaced(crops: Path, serve: Callable[..., ChatServer]) -> None:
    def wrongly(body: dict[str, Any]) -> str:
        again = len(body["messages"]) > 2
        if "red" in body["messages"][1]["content"] and not again:
            return "Find the one in a green shirt with no bag."
        if "blue" in body["messages"][1]["content"]:
            return "" if again else "A woman in a blue shirt with a backpack."
        return well(body)

    server = serve(wrongly)
    rows = run(crops, *model_options(server, "--count", "1", "--tries", "2", "--requests", "1"))
    assert rows[0]["instruction"] == "Find the one in a red shirt with no bag."
    assert rows[0]["instruction_by"] == "m"
    assert rows[1]["instruction_by"] == "template"
    assert "blue" in rows[1]["instruction"]
    assert [request["messages"][3]["content"] for request in server.requests if len(request["messages"]) > 2] == [
        "That says something else: upper colour is green instead of red. Write the sentence again.",
        "That says something else: woman (other) is added. Write the sentence again.",
    ]
    assert sorted(entry["problem"] for entry in answers(crops)) == [
        "", "it is empty", "upper colour is green instead of red", "woman (other) is added",
    ]  # fmt: skip


def test_a_server_that_goes_away_and_comes_back(
    crops: Path, serve: Callable[..., ChatServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = [row["instruction"] for row in run(crops, *model_options(serve(well)))]
    crops.with_name("crops_sentences.csv").unlink()
    crops.with_name("crops_sentences.csv.answers.jsonl").unlink()
    fails = [503]

    def sometimes(body: dict[str, Any]) -> Any:
        return (fails[0], b'{"error": {"message": "overloaded"}}') if fails and len(server.requests) > 2 else well(body)

    server = serve(sometimes)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    with pytest.raises(NoAnswer, match=r"fails .*overloaded.* run the same command again") as caught:
        run(crops, *model_options(server, "--requests", "1"))
    assert caught.value.exit_status == 1
    assert len(answers(crops)) == 2
    with open(crops.with_name("crops_sentences.csv.answers.jsonl"), "ab") as file:
        file.write(b'{"key": "of a process that was killed whi')
    fails.clear()
    server.requests.clear()
    assert [row["instruction"] for row in run(crops, *model_options(server))] == straight
    assert len(server.requests) == 4
    server.requests.clear()
    assert [row["instruction"] for row in run(crops, *model_options(server))] == straight
    assert not server.requests


def test_a_slow_server_one_that_is_not_there_and_one_that_refuses(
    crops: Path, serve: Callable[..., ChatServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    server = serve(lambda body: time.sleep(0.6) or "late")
    with pytest.raises(NoAnswer, match=r"does not answer within 0\.1 s.*fewer --requests or a longer --timeout"):
        run(crops, *model_options(server), "--timeout", "0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(NoAnswer, match=r"does not answer .* is it running"):
        run(crops, "--llm", nobody, "--model", "m")
    refusing = serve(lambda body: (404, b'{"error": {"message": "no model m here"}}'))
    with pytest.raises(LanguageModelError, match=r"no model m here.*correct --llm") as caught:
        run(crops, *model_options(refusing))
    assert caught.value.exit_status == 2
    with pytest.raises(LanguageModelError, match="often ends in /v1"):
        run(crops, "--llm", refusing.url.removesuffix("/v1"), "--model", "m")
    for body in (b"<html>hello</html>", b"{}", b'{"choices": []}'):
        page = serve(lambda _, body=body: (200, body))
        with pytest.raises(LanguageModelError, match="not answer as OpenAI's chat interface does"):
            run(crops, *model_options(page))
    assert not crops.with_name("crops_sentences.csv").exists()


def test_two_commands_do_not_write_one_file(crops: Path, serve: Callable[..., ChatServer]) -> None:
    target = sentences.answers_file(crops.with_name("crops_sentences.csv"))
    with language_model.kept_answers(target), pytest.raises(LockedError, match="another process writes"):
        run(crops, *model_options(serve(well)))


def test_without_a_server_templates_write_and_the_table_is_read(crops: Path) -> None:
    rows = run(crops)
    assert [row["instruction_by"] for row in rows] == ["template", "template", "template", ""]
    assert rows[0]["instruction"] == rows[2]["instruction"] != rows[1]["instruction"]
    assert len(rows[0]["instruction"].split("|")) == 3
    found = table.rows_of(table_files.read(crops.with_name("crops_sentences.csv")))
    assert found[0].instructions == tuple(rows[0]["instruction"].split("|"))
    trained, asked = (table._sentences(found[0]._replace(split=split), "li") for split in ("train", "query"))
    assert trained == found[0].instructions
    assert len(asked) == 1
    assert asked[0] in trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--llm", "http://x/v1"], "belong together"),
        (["--count", "0"], "--count must be at least 1"),
        (["--timeout", "nan"], "--timeout must be above 0"),
    ],
)
def test_mistaken_flags(crops: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(crops, *options)
    assert message in capsys.readouterr().err


def test_tables_that_cannot_serve(crops: Path) -> None:
    for out, message in ((crops, "is the table itself"), (crops.with_suffix(".xlsx"), r"must end in \.csv or \.jsonl")):
        with pytest.raises(DatasetError, match=message):
            run(crops, "--out", str(out))
    crops.write_text("image,identity,attributes\na.jpg,ann,gloves=red\n")
    with pytest.raises(DatasetError, match=r"crops\.csv, line 2, column 'attributes': no sentence .*gloves"):
        run(crops)
    crops.write_text("image,identity\na.jpg,ann\n")
    with pytest.raises(DatasetError, match="no row has attributes"):
        run(crops)
