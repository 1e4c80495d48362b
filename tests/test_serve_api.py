"""The API: chat completions whole and streamed, rankings, models; OpenAI's own client; what is refused, and how."""

import json

import pytest
from conftest import TEXTS, needs
from serving import CHAT, PERSONA, QUESTION, RERANK, chunks_of, messages, random_agent, serving, text_of

from convai.dialog.agent import Context
from convai.dialog.decoding import DecodingSettings
from convai.options import RANKINGS

GREEDY = DecodingSettings(no_sample=True)


@pytest.fixture(scope="module")
def agent():
    return random_agent(settings=GREEDY)


@pytest.fixture(scope="module")
def server(agent):
    with serving(agent) as running:
        yield running


def test_a_reply_is_the_agents_and_tokens_are_counted(server, agent):
    answer = server.chat().json()
    expected = agent.reply_batch([Context(PERSONA, [QUESTION])])[0]
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None}
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny"
    persona, question = (sum(len(agent.tokenizer.encode(text)) for text in texts) for texts in (PERSONA, [QUESTION]))
    assert answer["usage"]["prompt_tokens"] == 1 + persona + 1 + question + 1  # <bos>, two speakers
    n_said = answer["usage"]["completion_tokens"]
    assert 1 <= n_said <= 20 and choice["finish_reason"] == ("length" if n_said == 20 else "stop")
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + n_said


def test_a_stream_gives_the_same_reply_in_pieces(server):
    with server.client.stream(
        "POST",
        CHAT,
        json={
            "messages": messages([QUESTION]),
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = chunks_of(response)
    whole = server.chat().json()
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[-1] == "[DONE]" and chunks[-2]["choices"] == [] and chunks[-2]["usage"] == whole["usage"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-2]] == [None] * (len(chunks) - 3) + [
        whole["choices"][0]["finish_reason"]
    ]
    assert len(chunks) > 6  # not all at once
    assert len({chunk["id"] for chunk in chunks[:-1]}) == 1


def test_the_client_of_openai(server):
    openai = needs("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "convai"
    asked = {"model": "tiny", "messages": messages([QUESTION]), "temperature": 0}
    whole = client.chat.completions.create(**asked, user="somebody", metadata={"a": "b"})
    assert whole.choices[0].message.content == server.reply() and whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert last.usage == whole.usage
    # The next turn, with what the client has made of the answer.
    turns = [*asked["messages"], whole.choices[0].message, {"role": "user", "content": "and you ?"}]
    again = client.chat.completions.create(**asked | {"messages": turns})
    said = [QUESTION, whole.choices[0].message.content, "and you ?"]
    assert again.choices[0].message.content == server.reply(said)
    sampled = client.chat.completions.create(**asked | {"temperature": 1.5}, n=3, seed=7, extra_body={"top_k": 50})
    assert len({choice.message.content for choice in sampled.choices}) == 3
    with pytest.raises(openai.BadRequestError, match="tools: is not supported here"):
        client.chat.completions.create(**asked, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        client.chat.completions.create(**asked | {"model": "gpt"})


def sampled(server, **fields) -> list[str]:
    response = server.chat(**{"temperature": 1.5, "top_p": 1.0} | fields)
    assert response.status_code == 200, response.text
    return [choice["message"]["content"] for choice in response.json()["choices"]]


def test_seeds(server, agent):
    first = sampled(server, seed=5)
    assert first == sampled(server, seed=5) == sampled(server, seed=5, n=3)[:1]
    assert first != sampled(server, seed=6)
    assert sampled(server) != sampled(server)
    agent.change_settings(no_sample=False, temperature=1.5, top_p=1.0)
    assert first == agent.reply_batch([Context(PERSONA, [QUESTION])], seed=5)
    agent.settings = GREEDY


def test_without_a_seed_the_same_requests_in_the_same_order_get_the_same(agent):
    found = []
    for seed in (3, 3, 4):
        with serving(agent, seed=seed) as own:
            found.append(sampled(own) + sampled(own))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("fields", "n_tokens"),
    [({"max_tokens": 3}, 3), ({"max_completion_tokens": 2, "max_tokens": 9}, 2), ({"max_tokens": 10**9}, 256)],
)
def test_the_longest_reply(server, fields, n_tokens):
    answer = server.chat(
        min_tokens=fields.get("max_completion_tokens", min(fields["max_tokens"], 256)), **fields
    ).json()
    assert answer["usage"]["completion_tokens"] == n_tokens and answer["choices"][0]["finish_reason"] == "length"


def test_stops(server):
    reply = server.reply(min_tokens=12)
    words = reply.split(" ")
    assert len(words) > 3
    stop = f" {words[2]}"
    end = reply.index(stop)
    answer = server.chat(min_tokens=12, stop=[stop, "never said"]).json()["choices"][0]
    assert answer["message"]["content"] == reply[:end] and answer["finish_reason"] == "stop"
    with server.client.stream(
        "POST",
        CHAT,
        json={"messages": messages([QUESTION]), "temperature": 0, "min_tokens": 12, "stream": True, "stop": stop},
    ) as response:
        assert text_of(chunks_of(response)) == reply[:end]


def test_greedy_and_sampled_settings(server):
    assert server.reply(temperature=0.001) == server.reply()
    assert sampled(server, top_k=1) == [server.reply()]
    assert len(set(sampled(server, top_k=-1, n=8))) > 4


def test_messages_as_clients_send_them(server, agent):
    persona, turns = PERSONA, [QUESTION, TEXTS[3], "and you ?"]
    expected = server.reply(turns)
    parts = [{"type": "text", "text": "and "}, {"type": "text", "text": "you ?"}]
    split = messages(turns)
    split[0]["role"] = "developer"
    split[-1]["content"] = parts
    split[2] |= {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    one_line = [{"role": "system", "content": " ".join(persona)}, *split[1:]]
    pieces = [*split[:-1], {"role": "user", "content": "and"}, {"role": "user", "content": "you ?"}]
    for sent in (split, one_line, pieces):
        response = server.client.post(CHAT, json={"messages": sent, "temperature": 0})
        assert response.json()["choices"][0]["message"]["content"] == expected, sent
    # The agent opens, and answers to its opening.
    assert server.reply([]) == agent.reply_batch([Context(PERSONA, [])])[0]
    assert server.reply([TEXTS[1], QUESTION]) == agent.reply_batch([Context(PERSONA, [TEXTS[1], QUESTION])])[0]
    assert server.reply([], []) == agent.reply_batch([Context([], [])])[0]


def test_a_suggestion_is_a_dialog_with_its_roles_swapped(server, agent):
    agent.reset()
    agent.persona = PERSONA
    reply = agent.reply(QUESTION)
    suggestion = agent.suggest(["i like tea ."])
    assert server.reply([QUESTION]) == reply
    assert server.reply([QUESTION, reply], ["i like tea ."]) == suggestion
    agent.reset()


@pytest.mark.parametrize("by", RANKINGS)
def test_rankings_are_the_agents(server, agent, by):
    candidates = [*TEXTS[:4], TEXTS[0]]
    answer = server.client.post(
        RERANK,
        json={"messages": messages([QUESTION]), "documents": candidates, "rank_by": by, "return_documents": True},
    ).json()
    expected = agent.rank_batch([(Context(PERSONA, [QUESTION]), candidates)], by)[0]
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert [found[i] for i in range(5)] == pytest.approx(expected)
    scores = [one["relevance_score"] for one in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert [one["document"]["text"] for one in answer["results"]] == [
        candidates[one["index"]] for one in answer["results"]
    ]
    assert answer["rank_by"] == by and answer["usage"]["total_tokens"] > 0


def test_rankings_as_rerankers_clients_ask_for_them(server):
    asked = {"model": "tiny", "query": QUESTION, "documents": [{"text": TEXTS[1]}, TEXTS[3], TEXTS[5]], "top_n": 2}
    answer = server.client.post(RERANK, json=asked).json()
    assert len(answer["results"]) == 2 and set(answer["results"][0]) == {"index", "relevance_score"}
    same = server.client.post(RERANK, json={"messages": messages([QUESTION], []), "documents": TEXTS[1:6:2]}).json()
    assert same["results"][:2] == answer["results"]


def test_an_untrained_head_is_not_asked(agent):
    agent.model.config.ranking_is_trained = False
    try:
        with serving(agent) as own:
            asked = {"query": QUESTION, "documents": TEXTS[:2]}
            refused = own.client.post(RERANK, json=asked | {"rank_by": "head"})
            assert refused.status_code == 400 and refused.json()["error"]["code"] == "no_ranking_head"
            assert "never been trained" in refused.json()["error"]["message"]
            assert own.client.post(RERANK, json=asked).json()["rank_by"] == "likelihood"
            assert own.client.get("/api/config").json()["rank_by"]["choices"] == ["likelihood", "pmi"]
    finally:
        agent.model.config.ranking_is_trained = True


def test_what_the_page_asks_for(server):
    config = server.client.get("/api/config").json()
    published = {"greedy": False, "temperature": 0.7, "top_k": 0, "top_p": 0.9, "max_tokens": 20, "min_tokens": 1}
    assert published.items() <= config["decoding"].items()
    assert config["model"] == "tiny" and config["limits"]["max_tokens"] == 256
    assert config["rank_by"] == {"choices": RANKINGS, "default": "head"}
    assert server.client.get("/api/personas").json() == {"personas": [PERSONA]}
    assert server.client.get("/health").json() == {"status": "ok", "model": "tiny"}


def test_metrics(server):
    server.chat(stream=True)
    server.client.post(RERANK, json={"query": QUESTION, "documents": TEXTS[:2]})
    text = server.client.get("/metrics").text
    for name in (
        'convai_requests_total{route="/v1/chat/completions",status="200"}',
        'convai_request_seconds_count{route="/v1/rerank"}',
        "convai_first_text_seconds_count",
        "convai_prompt_tokens_total",
        "convai_reply_tokens_total",
        "convai_batch_size_count",
        "convai_waiting 0.0",
        "convai_running 0.0",
    ):
        assert name in text, name
    parser = needs("prometheus_client.parser")
    assert len(list(parser.text_string_to_metric_families(text))) > 8


def test_the_docs_fetch_nothing_from_elsewhere(server):
    page = server.client.get("/docs").text
    assert "http" not in page.lower().replace('lang="en"', "")
    for path in ("/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/start.js", "/", "/page.css", "/page.js"):
        assert server.client.get(path).status_code == 200, path
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {CHAT, RERANK, "/v1/models", "/health", "/metrics"} <= set(paths)
    assert "422" not in paths[CHAT]["post"]["responses"]


TURN = {"role": "user", "content": "x"}
REFUSED = [
    ({}, 400, "messages: Field required"),
    ({"messages": "x"}, 400, "messages: Input should be a valid list"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0]: the user's content must be text"),
    ({"messages": [{"role": "user", "content": 1}]}, 400, "messages.0.content: Input should be a valid string"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
    ({"messages": [TURN, {"role": "assistant", "content": "y"}]}, 400, "must end with the user's turn"),
    ({"messages": [TURN, {"role": "system", "content": "y"}, TURN]}, 400, "messages[1]: the system's message"),
    ({"messages": [{"role": "user", "content": " \u200b\x00"[:1]}]}, 400, "the last message is empty"),
    ({"messages": [TURN], "temprature": 1}, 400, "there is no field temprature; did you mean temperature?"),
    ({"messages": [TURN], "temperature": "1"}, 400, "temperature: Input should be a valid number"),
    ({"messages": [TURN], "temperature": -1}, 400, "temperature"),
    ({"messages": [TURN], "top_p": 0}, 400, "top_p: Input should be greater than 0"),
    ({"messages": [TURN], "n": 9}, 400, "n is 8 at most"),
    ({"messages": [TURN], "n": True}, 400, "n: Input should be a valid integer"),
    ({"messages": [TURN], "stop": ["a"] * 5}, 400, "stop: must be four texts at most"),
    ({"messages": [TURN], "min_tokens": 9, "max_tokens": 3}, 400, "min_tokens 9 is above max_tokens 3"),
    ({"messages": [TURN], "response_format": {"type": "json_object"}}, 400, "response_format: is not supported here"),
    ({"messages": [TURN], "logprobs": True}, 400, "logprobs: is not supported here"),
    ({"messages": [TURN], "model": "other"}, 404, "this server has tiny"),
]


@pytest.mark.parametrize(("body", "status", "message"), REFUSED)
def test_what_is_refused_says_why(server, body, status, message):
    response = server.client.post(CHAT, json=body)
    error = response.json()["error"]
    assert response.status_code == status and message in error["message"], error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"documents": ["a"]}, "give either query or messages"),
        ({"query": "a", "messages": [TURN], "documents": ["a"]}, "give either query or messages"),
        ({"query": "a", "documents": []}, "documents"),
        ({"query": "a", "documents": ["a", " "]}, "documents[1] is empty"),
        ({"query": "a", "documents": ["a"] * 101}, "100 documents are the most"),
        ({"query": "a", "documents": ["a"], "rank_by": "luck"}, "rank_by is one of head, likelihood"),
        ({"query": "a", "documents": [1]}, "documents.0: Input should be a valid string"),
    ],
)
def test_rankings_that_are_refused_say_why(server, body, message):
    response = server.client.post(RERANK, json=body)
    assert response.status_code == 400 and message in response.json()["error"]["message"]


def test_what_asks_for_nothing_special_is_taken(server):
    usual = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": False,
             "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "modalities": ["text"], "user": "a",
             "store": True, "service_tier": "auto", "stream_options": None, "stop": None, "n": None,
             "parallel_tool_calls": True}  # fmt: skip
    assert server.reply(**usual) == server.reply()


def test_paths_and_methods_that_there_are_not(server):
    for method, path, status in (("GET", "/nothing", 404), ("GET", CHAT, 405), ("PUT", "/health", 415)):
        response = server.client.request(method, path)
        assert response.status_code == status and json.loads(response.text)["error"]["message"]
