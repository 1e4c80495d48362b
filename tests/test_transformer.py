"""The transformer's own arithmetic against torch's plain way: embeddings, dropout, attention, packing."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXTS, tiny_model

from convai.data.batches import collate_trees
from convai.data.inputs import InputBuilder
from convai.model import transformer
from convai.model.tokenization import train_vocabulary
from convai.model.transformer import Dropout, attend, attend_by_blocks, embed_tokens, row_blocks, tree_mask


def test_embedding_gradient_equals_autograds_own():
    torch.manual_seed(0)
    ids, types = torch.randint(0, 50, (30,)), torch.randint(48, 50, (30,))

    def gradient(embed):
        weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        x, tied = embed(weight)
        (F.linear(x[::3].tanh(), tied).logsumexp(-1).sum() + x.square().sum()).backward()
        return weight.grad

    ours = gradient(lambda weight: embed_tokens(weight, ids, types))
    plain = gradient(lambda weight: (F.embedding(ids, weight) + F.embedding(types, weight), weight))
    torch.testing.assert_close(ours, plain)


def test_embedding_has_a_gradient_where_no_head_is_used():
    weight = torch.randn(5, 2, requires_grad=True)
    embed_tokens(weight, torch.tensor([1, 1]), torch.tensor([3, 4]))[0].sum().backward()
    assert weight.grad.tolist() == [[0, 0], [2, 2], [0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_the_share_it_should_and_keeps_the_mean(p):
    torch.manual_seed(0)
    dropout, n = Dropout(p), 1_000_001
    dropped = dropout(torch.ones(n))
    share = (dropped == 0).float().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n)
    assert dropped.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    # Neighbours are independent, though four of them come out of one random number.
    both = ((dropped[:-1] == 0) & (dropped[1:] == 0)).float().mean().item()
    assert abs(both - p * p) < 5 * math.sqrt(p * p / n)


def test_dropout_follows_torchs_seed_and_goes_the_same_way_back():
    x = torch.ones(7, 9, requires_grad=True)
    torch.manual_seed(3)
    first = Dropout(0.3)(x)
    torch.manual_seed(3)
    second = Dropout(0.3)(x)
    assert torch.equal(first, second) and not torch.equal(Dropout(0.3)(x), first)
    first.sum().backward()
    assert torch.equal(x.grad, first)


def test_dropout_of_nothing_and_of_everything():
    x = torch.randn(100)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert Dropout(0.1)(torch.ones(0, 3)).shape == (0, 3)


def test_attention_with_dropout_has_the_mean_of_attention_without():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 6, 4)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    exact = attend(query, key, value, mask, Dropout(0.0))
    torch.testing.assert_close(exact, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    dropout = Dropout(0.2)
    mean = torch.stack([attend(query, key, value, mask, dropout) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, exact, atol=0.05, rtol=0)


def test_compiled_blocks_compute_the_same_and_keep_their_names():
    changes = {"attn_pdrop": 0.1, "resid_pdrop": 0.1}
    tokenizer = train_vocabulary(TEXTS, "gpt2", 300)
    examples = [([[1, 2], [3]], [[4, 5, 6]] * n, [[7, 8], [9]]) for n in range(1, 4)]
    batch = collate_trees([InputBuilder(tokenizer, 64).tree(*example) for example in examples])
    plain, compiled = (tiny_model(tokenizer, n_layer=3, **changes) for _ in range(2))
    compiled.transformer.compile_blocks(backend="aot_eager")
    torch.testing.assert_close(compiled(**batch.model_inputs()), plain(**batch.model_inputs()))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    compiled.train()(**batch.model_inputs()).mc_logits.sum().backward()
    assert all(weight.grad is not None for weight in compiled.transformer.h[0].parameters())


def test_row_blocks_by_hand(monkeypatch):
    monkeypatch.setattr(transformer, "ROWS_OF_BLOCK", 2)
    # Contexts of 3 and 2; the second block begins within branch 1 of the second tree, the third within 2 of the first.
    branch_ids = torch.tensor([[0, 0, 0, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, -1]])
    assert row_blocks(branch_ids) == [(0, 0, 3), (3, 3, 5), (5, 3, 7)]
    assert row_blocks(torch.tensor([[0, 1, 2, 2, 2, 3, 3]])) == [(0, 0, 1), (1, 1, 3), (3, 2, 5), (5, 5, 7)]


@pytest.mark.parametrize("n_rows", [1, 3, 8, 1000])
def test_attention_by_blocks_equals_attention_at_once(n_rows, monkeypatch):
    monkeypatch.setattr(transformer, "ROWS_OF_BLOCK", n_rows)
    drawn = random.Random(n_rows)
    for _ in range(20):
        rows = [
            [0] * drawn.randint(1, 9) + [b for b in range(1, drawn.randint(2, 6)) for _ in range(drawn.randint(1, 6))]
            for _ in range(3)
        ]
        length = max(map(len, rows))
        mask = tree_mask(torch.tensor([row + [-1] * (length - len(row)) for row in rows]))
        query, key, value = torch.randn(3, 3, 2, length, 4)
        by_blocks = attend_by_blocks(query, key, value, mask, Dropout(0.0))
        at_once = attend_by_blocks(query, key, value, mask._replace(blocks=()), Dropout(0.0))
        assert len(mask.blocks) > 1 and torch.isfinite(by_blocks).all()
        # Padding, which nobody reads, sees other padding.
        for b, row in enumerate(rows):
            torch.testing.assert_close(by_blocks[b, :, : len(row)], at_once[b, :, : len(row)])
