"""Requests that are generated together: each gets what it gets alone; lines, deadlines, clients that go, endings."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from conftest import TEXTS
from decoder_folders import make_decoder
from serving import CHAT, PERSONA, QUESTION, RERANK, Server, chunks_of, messages, random_agent, serving, text_of

from convai.dialog.agent import DialogAgent
from convai.dialog.batch_decoder import BatchDecoder

LONG = {"max_tokens": 200, "min_tokens": 200}


@pytest.fixture(scope="module", params=["openai-gpt", "gpt2", "llama"])
def any_server(request, tmp_path_factory):
    if request.param == "llama":
        agent = DialogAgent.load(make_decoder(tmp_path_factory.mktemp("llama")), device="cpu")
    else:
        agent = random_agent(request.param)
    with serving(agent, max_batch=5) as running:
        yield running


@pytest.fixture(scope="module")
def agent():
    return random_agent()


@pytest.fixture
def steps(monkeypatch):
    """A gate before every step of the decoder: nothing is generated until `release` is called."""
    return Steps(monkeypatch)


class Steps:
    def __init__(self, monkeypatch):
        self.gate = threading.Event()
        self.sizes: list[int] = []
        step = BatchDecoder.step

        def wait_and_step(decoder):
            self.gate.wait(20)
            self.sizes.append(decoder.n_rows)
            return step(decoder)

        monkeypatch.setattr(BatchDecoder, "step", wait_and_step)

    def release(self) -> None:
        self.gate.set()


def in_background(server: Server, n: int, *arguments, **fields):
    """Send n requests at once; their responses, later."""
    pool = ThreadPoolExecutor(n)
    return [pool.submit(server.chat, *arguments, **fields) for _ in range(n)]


def test_what_a_request_gets_does_not_depend_on_who_else_is_there(any_server):
    rng = random.Random(0)
    requests = []
    for i in range(24):
        turns = TEXTS[: 2 * rng.randrange(3) + 1]
        sampled = {"temperature": 1.3, "top_p": rng.choice([0.8, 1.0]), "top_k": rng.choice([0, 20]), "seed": i}
        fields = [{}, sampled, sampled | {"n": 2}, {"no_repeat_ngram_size": 2}][i % 4]
        requests.append({"turns": turns, "persona": PERSONA[: i % 3], "max_tokens": rng.randrange(3, 25)} | fields)

    def contents(request: dict) -> list[str]:
        response = any_server.chat(**request)
        assert response.status_code == 200, response.text
        return [choice["message"]["content"] for choice in response.json()["choices"]]

    alone = list(map(contents, requests))
    for workers in (4, 24):
        with ThreadPoolExecutor(workers) as pool:
            assert list(pool.map(contents, requests)) == alone
    assert len({text for texts in alone for text in texts}) > 12


def test_requests_that_wait_are_generated_together(agent, steps):
    with serving(agent, max_batch=4) as server:
        first = in_background(server, 1, **LONG)
        server.until(lambda: server.service.worker.n_running == 1)
        rest = in_background(server, 7, max_tokens=5, min_tokens=5)
        server.until(lambda: server.service.worker.n_waiting == 7)
        steps.release()
        assert {future.result().status_code for future in [*first, *rest]} == {200}
    # Three join the first as soon as a token has been made, and three more once these are whole.
    assert steps.sizes[:12] == [1, *[4] * 10, 2]
    assert len(steps.sizes) == 200


def test_rankings_take_their_turn_between_tokens(agent, steps):
    with serving(agent) as server:
        (long,) = in_background(server, 1, **LONG)
        server.until(lambda: server.service.worker.n_running == 1)
        asked = {"query": QUESTION, "documents": TEXTS}
        with ThreadPoolExecutor(1) as pool:
            ranked = pool.submit(server.client.post, RERANK, json=asked)
            server.until(lambda: server.service.worker.n_waiting == 1)
            steps.release()
            answer = ranked.result()
            assert not long.done() or len(steps.sizes) == 200
        assert len(answer.json()["results"]) == len(TEXTS)
        assert long.result().status_code == 200


def test_a_full_line_is_said_with_when_to_come_again(agent, steps):
    with serving(agent, max_batch=1, max_waiting=2) as server:
        running = in_background(server, 1)
        server.until(lambda: server.service.worker.n_running == 1)
        waiting = in_background(server, 2)
        server.until(lambda: server.service.worker.n_waiting == 2)
        refused = server.chat()
        assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        steps.release()
        assert {future.result().status_code for future in [*running, *waiting]} == {200}
        assert server.chat().status_code == 200


def test_a_request_that_takes_too_long_is_ended(agent, steps):
    with serving(agent, max_batch=1, deadline=0.4) as server:
        worker = server.service.worker
        # The first while the model is at work for all that time, the second in line.
        late = [*in_background(server, 1, stream=True), *in_background(server, 1)]
        for future in late:
            answer = future.result(timeout=5)
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "deadline"
        steps.release()
        server.until(lambda: worker.n_running + worker.n_waiting == 0)
        assert server.chat().status_code == 200


def test_a_stream_that_takes_too_long_ends_with_an_error(agent, monkeypatch):
    step, n_steps, gate = BatchDecoder.step, count(), threading.Event()

    def slow_step(decoder):
        if next(n_steps) == 20:
            gate.wait(0.7)
        return step(decoder)

    monkeypatch.setattr(BatchDecoder, "step", slow_step)
    with serving(agent, deadline=0.6) as server:
        asked = {"messages": messages([QUESTION]), "temperature": 0, "stream": True} | LONG
        with server.client.stream("POST", CHAT, json=asked) as response:
            *chunks, last = chunks_of(response)
        assert text_of(chunks) and last["error"]["code"] == "deadline"
        server.until(lambda: server.service.worker.n_running == 0)


def test_a_client_that_goes_away_frees_its_place(agent, monkeypatch):
    steps = Steps(monkeypatch)
    with serving(agent, max_batch=1) as server:
        worker = server.service.worker
        asked = {"messages": messages([QUESTION]), "temperature": 0, "stream": True} | LONG
        steps.release()
        with server.client.stream("POST", CHAT, json=asked) as response:
            lines = response.iter_lines()
            for _ in range(8):
                next(lines)
            steps.gate.clear()
        # One is in line when it goes.
        with pytest.raises(Exception, match="timed out"):
            server.client.post(CHAT, json={"messages": messages([QUESTION])}, timeout=0.3)
        server.until(lambda: worker.n_waiting == 0)
        steps.release()
        server.until(lambda: worker.n_running == 0)
        assert len(steps.sizes) < 150
        assert server.chat().status_code == 200


def test_what_runs_is_finished_and_what_waits_is_sent_away(agent, steps):
    with serving(agent, max_batch=1) as server:
        running = in_background(server, 1, **LONG)
        server.until(lambda: server.service.worker.n_running == 1)
        waiting = in_background(server, 2)
        server.until(lambda: server.service.worker.n_waiting == 2)
        server.stop()
        steps.release()
        assert [future.result().status_code for future in running] == [200]
        for future in waiting:
            assert future.result().status_code == 503 and "retry-after" in future.result().headers


def test_an_error_within_the_model_is_told_and_got_over(agent, monkeypatch, caplog):
    with serving(agent) as server:
        expected, secret = server.reply(), f"my password is {4700 + 11}"
        step, n_steps = BatchDecoder.step, count()

        def failing_step(decoder):
            if next(n_steps) == 3:
                raise RuntimeError(secret)
            return step(decoder)

        monkeypatch.setattr(BatchDecoder, "step", failing_step)
        failed = server.chat([secret])
        assert failed.status_code == 500 and "log" in failed.json()["error"]["message"]
        assert "RuntimeError" in caplog.text and "failing_step" in caplog.text and "4711" not in caplog.text
        assert server.reply() == expected


def test_searching_with_beams(agent):
    with serving(agent, num_beams=2, no_sample=True) as server:
        found = server.client.post(CHAT, json={"messages": messages([QUESTION]), "n": 2}).json()
        texts = [choice["message"]["content"] for choice in found["choices"]]
        agent.change_settings(num_beams=2, no_sample=True)
        agent.persona = PERSONA
        assert texts == [agent.reply(QUESTION)] * 2
        with server.client.stream("POST", CHAT, json={"messages": messages([QUESTION]), "stream": True}) as response:
            assert text_of(chunks_of(response)) == texts[0]


def test_an_error_in_one_request_is_its_own(agent, monkeypatch, caplog):
    with serving(agent) as server:
        expected = server.reply()
        prompt = server.service.worker._contexts.prompt

        def failing_prompt(asked, max_length):
            if "fail" in asked.turns:
                raise RuntimeError
            return prompt(asked, max_length)

        monkeypatch.setattr(server.service.worker._contexts, "prompt", failing_prompt)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(server.chat, [["fail"], [QUESTION]] * 4))
        assert [one.status_code for one in found] == [500, 200] * 4
        assert {one.json()["choices"][0]["message"]["content"] for one in found[1::2]} == {expected}
        assert "RuntimeError" in caplog.text


def test_a_lone_dialog_is_not_read_again_turn_by_turn():
    agent = random_agent(max_history=9)
    with serving(agent) as server:
        decoder = server.service.worker._decoder
        said, n_read = [], []
        for turn in TEXTS[:4]:
            before = decoder.n_tokens_read
            said += [turn, server.reply([*said, turn], max_tokens=5)]
            n_read.append(decoder.n_tokens_read - before)
        n_said = [len(agent.tokenizer.encode(turn)) for turn in TEXTS[:4]]
        for n_tokens, n_turn in zip(n_read[1:], n_said[1:], strict=True):
            assert n_tokens <= n_turn + 5 + 5  # its speakers, and a reply
        # The same as without what was kept.
        server.service.worker._memory.clear()
        assert server.reply(said[:-1], max_tokens=5) == said[-1]
