"""The benchmark of the server runs on tiny sizes and reports every way beside those without a server."""

import json

import pytest

from bench.clients import body_of
from bench.serve import main


def test_every_way_is_reported(dataset_file, capsys):
    main(["--small", "--data", str(dataset_file), "--repeats", "1", "--replies", "2", "--clients", "1", "3", "--length",
          "6"])  # fmt: skip
    lines = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(lines) == ["batches of 16", "one by one", "1 clients", "3 clients", "first text of a lone request"]
    assert lines.popitem()[1]["times_chat"] > 0
    assert lines["one by one"]["times_one_by_one_by_s"] == lines["batches of 16"]["times_batches_of_16_by_cpu_s"] == 1
    for name, line in lines.items():
        assert line["replies_per_s"] > 0 and line["replies_per_cpu_s"] > 0 and line["command"].startswith("python -m")
        assert ("first_text_ms" in line) == ("clients" in name)


@pytest.mark.parametrize("n_turns", [1, 3])
def test_requests_end_with_the_user(n_turns):
    asked = json.loads(body_of([["i ski ."], ["a", "b", "c"][:n_turns]], 5))
    assert [one["role"] for one in asked["messages"]] == ["system", "user", "assistant", "user"][: n_turns + 1]
    assert asked["min_tokens"] == asked["max_tokens"] == 5
