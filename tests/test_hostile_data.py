"""Data that nobody should have to fear: one line of error each, in little time and memory."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import ROOT, needs

from convai.data import text_stream
from convai.data.compressed import zstd

MIB = 2**20
MESSAGES = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'


def repeated(content: bytes, n_mib: int) -> Iterator[bytes]:
    block = content * (MIB // len(content))
    return (block for _ in range(n_mib))


# Name, blocks, and what the error says. Sizes are a little above the limits: what is larger takes the same way.
FILES = {
    "a line that is no dialog": ("a.txt", [b"1 ", *repeated(b"x", 70)], "a.txt, line 1, is larger than 64 MB or holds"),
    "a line of JSON": ("a.jsonl", [MESSAGES, b'{"messages": "', *repeated(b"x", 70)], "line 2, is larger than 64 MB"),
    "a string in an array": ("a.json", [b'["', *repeated(b"x", 70)], "what begins at line 1, column 2 is larger than"),
    "a dialog of emoji": ("a.json", [b'[{"utterances": ["', *repeated("😀".encode(), 70)], "column 2 is larger than"),
    "millions of values": ("a.json", [b"[[", *repeated(b"[],", 8), b"1]]"], "column 2 is larger than 64 MB or holds"),
    "millions of keys": ("a.json", [b'{"a": {', *repeated(b'"":1,', 8)], "column 7 is larger than 64 MB or holds mil"),
    "millions of fields": ("a.csv", [b"messages,", *repeated(b",", 8)], "a.csv, line 1, is larger than 64 MB or holds"),
    "a quote without end": ("a.csv", [b"dialog,x\n", *repeated(b'"a\n', 70)], "a.csv: row 0 is not CSV: "),
    "a dialog of ParlAI": ("a.txt", [b"%d hi\tho\n" % n for n in range(1, 9000)], "begins at line 1 is larger than"),
    "a dialog of turns": ("a.jsonl", [json.dumps({"dialog": ["a"] * 9000}).encode(), b"\n"] * 2, "1: it has 9,000"),
    "nested deeply": ("a.json", list(repeated(b"[", 3)), "is no PersonaChat file (maximum recursion depth exceeded"),
    "nested deeply in a line": ("a.jsonl", [MESSAGES, b'{"messages":', b"[" * 99999, b"\n"], "line 2 holds no dialog"),
    "NUL bytes": ("a.txt", [b"1 hi\tho\n", bytes(70)], "a.txt is no text: byte 8 is NUL; convert it to UTF-8 text."),
    "NUL bytes in JSON": ("a.json", [b'[{"utterances": "', bytes(9)], "a.json is no text: byte 17 is NUL"),
    "invalid UTF-8 far in": ("a.jsonl", [MESSAGES * 20_000, b"\xff"], "is not UTF-8 text (byte 1800000)"),
    "invalid UTF-8 in JSON": ("a.json", [b"[", b" " * 3_000_000, b'"\xc3"]'], "is not UTF-8 text (byte 3000002)"),
    "cut within a character": ("a.json", [b'["\xc3'], "is not UTF-8 text (byte 2)"),
}  # fmt: skip


def read_all(paths, n_mib: int = 400) -> dict[str, str]:
    """The error for each path, read one after the other in a process of its own, whose memory grows by `n_mib`."""
    code = (
        "import json, resource, sys; from convai.data.formats import find_source; from convai.errors import UserError\n"
        "def error_of(path):\n"
        "    try:\n"
        "        for _ in find_source(path).stream(): pass\n"
        "    except UserError as error: return str(error)\n"
        "memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = memory()\n"
        "found = {path: (error_of(path), memory() - before) for path in sys.argv[1:]}\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for path, (error, mib) in found.items():
        assert mib < n_mib, (path, mib)
        assert error is None or "\n" not in error
    return {path: error for path, (error, _) in found.items()}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in kB")
def test_each_is_one_line_and_takes_little_memory(tmp_path):
    wanted = {}
    for number, (name, blocks, message) in enumerate(FILES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with open(folder / name, "wb") as file:
            file.writelines(blocks)
        wanted[str(folder / name)] = message
    bombs = {"bomb.jsonl.gz": gzip.compress, "bomb.jsonl.zst": zstd.compress}
    for name, compress in bombs.items():
        (tmp_path / name).write_bytes(b"".join(map(compress, [b'{"', *repeated(b"x", 70)])))
        wanted[str(tmp_path / name)] = "is larger than 64 MB"
    found = read_all(wanted)
    for path, message in wanted.items():
        assert message in found[path], path


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in kB")
def test_what_is_large_but_no_dialog_is_passed_over(tmp_path):
    """Parts of unknown names, empty lines and space may be as large as they like."""
    dialogs = [{"utterances": [{"history": ["hi"], "candidates": ["ho"]}]}]
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.write(b'{"train": ' + json.dumps(dialogs).encode() + b"," + b" " * 5 * MIB + b'"notes": [')
        file.writelines(repeated(b'["' + b"not read" * 1000 + b'"], ', 80))
        file.write(b"1]}")
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(b"".join(map(gzip.compress, [MESSAGES, *repeated(b" " * (MIB - 1) + b"\n", 80), MESSAGES])))
    assert set(read_all([path, packed], n_mib=100).values()) == {None}


def test_tables_of_other_types_and_of_no_rows(tmp_path, monkeypatch):
    pyarrow, pq, datasets = needs("pyarrow"), needs("pyarrow.parquet"), needs("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    from dialog_files import error_of, load

    rows = [{"history": ["hi"], "candidates": ["no", "yes"]}] * 30
    bad = {
        "numbers": ([{"history": [1, 2], "candidates": ["a"]}], 'row 0, key "history" must hold strings only, not a'),
        "bytes": ([{"history": [b"a"], "candidates": ["a"]}], 'key "history" must hold strings only, not bytes'),
        "objects": ([{"history": {"a": "b"}, "candidates": ["a"]}], 'key "history" must be a list of strings, not an'),
        "nulls": ([{"history": None, "candidates": ["a"]}], 'key "history" must be a list of strings, not missing'),
    }  # fmt: skip
    for name, (content, message) in bad.items():
        (tmp_path / name).mkdir()
        pq.write_table(pyarrow.Table.from_pylist(content), tmp_path / name / "train.parquet")
        assert message in error_of(tmp_path / name), name
    (tmp_path / "none").mkdir()
    table = pyarrow.Table.from_pylist(rows)
    with pq.ParquetWriter(tmp_path / "none/train.parquet", table.schema) as writer:
        for part in (table[:0], table, table[:0]):
            writer.write_table(part)
    assert pq.ParquetFile(tmp_path / "none/train.parquet").metadata.row_group(0).num_rows == 0
    assert sum(map(len, load(tmp_path / "none").values())) == 30
    (tmp_path / "empty").mkdir()
    pq.write_table(table[:0], tmp_path / "empty/train.parquet")
    assert "empty" in error_of(tmp_path / "empty")


def test_the_limit_is_of_a_dialog_not_of_the_file(tmp_path, monkeypatch):
    from dialog_files import load

    monkeypatch.setattr(text_stream, "MAX_DIALOG_BYTES", 200)
    (tmp_path / "a.jsonl").write_bytes(MESSAGES * 1000)
    assert sum(map(len, load(tmp_path / "a.jsonl").values())) == 1000
