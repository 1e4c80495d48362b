"""What each of convai/model/cpu_kernels.py's ways saves: whole updates with all of them, and without one at a time.

    OMP_NUM_THREADS=1 python -m bench.kernels --data PERSONACHAT.json --tokenizer FOLDER --dtype bf16

Prints, for each, the time without it over the time with it. Processor time, so that a busy machine disturbs it less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch.nn.functional as F
from torch import Tensor, nn

from bench.setting import Setting
from bench.training import our_updates
from convai.model import cpu_kernels, double_heads, transformer


def plain_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, dropout: nn.Dropout, *_) -> Tensor:
    p = dropout.p if dropout.training else 0.0
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=p)


def plain_embedding(weight: Tensor, input_ids: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
    return F.embedding(input_ids, weight) + F.embedding(token_type_ids, weight), weight


# What stands in the place of each way: torch's own.
WITHOUT = {
    "dropout of 16 bits": [
        (cpu_kernels.Dropout, "forward", nn.Dropout.forward),
        (cpu_kernels, "attend", plain_attention),
        (transformer, "attend", plain_attention),
    ],
    "attention in blocks of rows": [(transformer, "query_blocks", lambda branch_ids: ())],
    "gradient of the tied embedding": [(double_heads, "embed_tokens", plain_embedding)],
}


def seconds(work: Callable[[], int], changes: list[tuple]) -> float:
    patches = [mock.patch.object(*change) for change in changes]
    for patch in patches:
        patch.start()
    start = time.process_time()
    work()
    duration = time.process_time() - start
    for patch in patches:
        patch.stop()
    return duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="example", help="as train.py's --dataset_path")
    parser.add_argument("--tokenizer", default="", help="folder with a vocabulary and config.json (default: new ones)")
    parser.add_argument("--family", default="openai-gpt", choices=["openai-gpt", "gpt2"], help="without --tokenizer")
    parser.add_argument("--dtype", default="bf16", choices=["fp32", "bf16"], help="of the matrix products")
    parser.add_argument("--candidates", type=int, default=4, help="replies of each example")
    parser.add_argument("--examples", type=int, default=8, help="of an update")
    parser.add_argument("--batch_size", type=int, default=4, help="examples per forward pass")
    parser.add_argument("--repeats", type=int, default=5, help="turns, of which the median counts")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark itself")
    parser.add_argument("--seed", type=int, default=42, help="of weights and of the choice of examples")
    parser.set_defaults(device="cpu")
    setting = Setting(parser.parse_args())
    options = setting.options
    dataset = setting.dataset("train", options.candidates)
    work = our_updates(setting, setting.load_ours(), dataset, setting.draw(len(dataset), options.examples))
    work()
    ratios: dict[str, list[float]] = {name: [] for name in WITHOUT}
    for _ in range(options.repeats):
        with_all = seconds(work, [])
        for name, changes in WITHOUT.items():
            ratios[name].append(seconds(work, changes) / with_all)
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.3f} times as long without ({options.dtype}, "
              f"{options.candidates} candidates)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
