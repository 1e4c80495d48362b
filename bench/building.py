"""From a file to the store, at any size: seconds, memory over all processes, the store's size, opening it again.

python -m bench.building --data PERSONACHAT.json --tokenizer MODEL --dialogs 18878 200000
python -m bench.building --data PERSONACHAT.json --tokenizer MODEL --dialogs 2000000 --form messages

Each size is made out of the data given (see enlarge.py), and measured in a fresh process; a line of JSON each.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from bench.data import building_facts, in_a_fresh_process, reading_facts
from bench.enlarge import write_messages, write_personachat
from bench.measure import MEGABYTE
from convai.data.formats import find_source
from convai.errors import report_user_errors
from convai.io.pretrained import locate_checkpoint

PAUSE_S = 3
WRITERS = {"personachat": ("json", write_personachat), "messages": ("jsonl", write_messages)}


@report_user_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="example", help="dialogs, in any form that train.py reads")
    parser.add_argument("--tokenizer", required=True, help="folder or hub name with a vocabulary")
    parser.add_argument("--dialogs", type=int, nargs="+", required=True, help="sizes, in dialogs")
    parser.add_argument("--form", choices=list(WRITERS), default="personachat", help="one line of JSON with 20 "
                        "candidates, or a line of chat messages each (default: personachat)")  # fmt: skip
    parser.add_argument("--folder", help="where the large files lie (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(arguments)
    dialogs, tokenizer = find_source(args.data).load()["train"], locate_checkpoint(args.tokenizer, "--tokenizer")
    ending, write = WRITERS[args.form]
    for n_dialogs in args.dialogs:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=args.folder) as folder:
            file, cache = Path(folder) / f"data.{ending}", str(Path(folder) / "cache")
            write(file, dialogs, n_dialogs, args.seed)
            time.sleep(PAUSE_S)  # a file that has just changed is hashed at every start
            facts = {
                "name": "building", "form": args.form, "dialogs": n_dialogs,
                "file_mb": round(file.stat().st_size / MEGABYTE, 1),
                **in_a_fresh_process(building_facts, tokenizer, file, cache),
                **in_a_fresh_process(reading_facts, tokenizer, file, cache, args.seed),
            }  # fmt: skip
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
