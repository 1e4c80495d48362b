"""The transformer's own arithmetic against torch's plain way: embeddings, dropout, attention, packing."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXTS, tiny_model

from convai.data.batches import collate_trees
from convai.data.inputs import InputBuilder
from convai.model import cpu_kernels
from convai.model.cpu_kernels import Dropout, attend, attend_by_blocks, embed_tokens, row_blocks
from convai.model.tokenization import train_vocabulary
from convai.model.transformer import tree_mask


class TestEmbedding:
    """The gradients of its three uses are summed as autograd would do it, and nobody's gradient is written into."""

    IDS, TYPES = torch.arange(30) * 7 % 50, torch.arange(30) % 2 + 48

    @staticmethod
    def plain(weight, ids, types):
        return F.embedding(ids, weight) + F.embedding(types, weight), weight

    def gradients(self, embed, loss_of, n_times=1, dtype=torch.float32):
        """The gradients of the weight and of a matrix beside it."""
        weight, other = (torch.randn(50, 8, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
        weight, other = (leaf.to(dtype).requires_grad_() for leaf in (weight, other))
        for _ in range(n_times):
            before = 2 * other  # made first, so that its gradient is used last
            x, tied = embed(weight, self.IDS, self.TYPES)
            loss_of(x, tied, before).backward()
        return weight.grad, other.grad

    def check(self, loss_of, **options):
        for ours, plain in zip(
            self.gradients(embed_tokens, loss_of, **options),
            self.gradients(self.plain, loss_of, **options),
            strict=True,
        ):
            if plain is not None:
                assert ours.layout == torch.strided
                torch.testing.assert_close(ours, plain)

    @staticmethod
    def usual_loss(x, tied, other):
        return F.linear(x[::3].tanh(), tied).logsumexp(-1).sum() + x.square().sum()

    def test_gradient_equals_autograds_own(self):
        self.check(self.usual_loss)

    def test_gradient_of_several_micro_batches(self):
        self.check(self.usual_loss, n_times=3)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_gradient_of_other_numbers(self, dtype):
        self.check(lambda x, tied, other: F.linear(x[:2], tied).sum() + x[:5].sum(), dtype=dtype)

    def test_gradient_under_autocast(self):
        def loss(x, tied, other):
            with torch.autocast("cpu", torch.bfloat16):
                return F.linear(x, tied).float().square().sum() + x.square().sum()

        self.check(loss)

    def test_gradient_without_a_head_and_without_look_ups(self):
        self.check(lambda x, tied, other: x.square().sum())
        self.check(lambda x, tied, other: F.linear(x.detach(), tied).square().sum())

    def test_a_gradient_that_another_was_handed_too(self):
        """A sum hands the very same gradient to both of its terms."""
        self.check(lambda x, tied, other: ((tied + other) * tied.detach()).sum() + x.square().sum())
        self.check(lambda x, tied, other: ((other + tied) * tied.detach()).sum() + x.square().sum())

    def test_a_gradient_that_is_one_number_seen_many_times(self):
        self.check(lambda x, tied, other: tied.sum() + x.square().sum())

    @pytest.mark.parametrize("way", ["retain_grad", "hook"])
    def test_a_gradient_that_somebody_keeps(self, way):
        def kept(embed):
            seen = []

            def loss(x, tied, other):
                tied.retain_grad() if way == "retain_grad" else tied.register_hook(seen.append)
                seen.append(tied)
                with torch.autocast("cpu", torch.bfloat16):
                    return F.linear(x, tied).float().square().sum() + x.square().sum()

            self.gradients(embed, loss)
            return seen[0].grad if way == "retain_grad" else seen[1]

        # The head's part alone, which a plain weight's hook cannot see: of a view of it.
        expected = kept(lambda weight, *ids: (self.plain(weight, *ids)[0], weight.view_as(weight)))
        torch.testing.assert_close(kept(embed_tokens), expected)

    def test_going_back_twice_through_one_graph(self):
        def gradient(embed):
            weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
            loss = self.usual_loss(*embed(weight, self.IDS, self.TYPES), None)
            loss.backward(retain_graph=True)
            loss.backward()
            return weight.grad

        torch.testing.assert_close(gradient(embed_tokens), gradient(self.plain))

    def test_a_frozen_weight(self):
        x, tied = embed_tokens(torch.ones(50, 8), self.IDS, self.TYPES)
        assert not x.requires_grad and not tied.requires_grad

    def test_the_same_sums_each_time(self):
        first, second = (self.gradients(embed_tokens, self.usual_loss)[0] for _ in range(2))
        assert torch.equal(first, second)


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
    monkeypatch.setattr(cpu_kernels, "ROWS_OF_BLOCK", 2)
    # Contexts of 3 and 2; the second block begins within branch 1 of the second tree, the third within 2 of the first.
    branch_ids = torch.tensor([[0, 0, 0, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, -1]])
    assert row_blocks(branch_ids) == [(0, 0, 3), (3, 3, 5), (5, 3, 7)]
    assert row_blocks(torch.tensor([[0, 1, 2, 2, 2, 3, 3]])) == [(0, 0, 1), (1, 1, 3), (3, 2, 5), (5, 5, 7)]


@pytest.mark.parametrize("n_rows", [1, 3, 8, 1000])
def test_attention_by_blocks_equals_attention_at_once(n_rows, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "ROWS_OF_BLOCK", n_rows)
    drawn = random.Random(n_rows)
    for _ in range(20):
        rows = [
            [0] * drawn.randint(1, 9) + [b for b in range(1, drawn.randint(2, 6)) for _ in range(drawn.randint(1, 6))]
            for _ in range(3)
        ]
        length = max(map(len, rows))
        mask = tree_mask(torch.tensor([row + [-1] * (length - len(row)) for row in rows]))
        query, key, value = torch.randn(3, 3, 2, length, 4)
        by_blocks = attend_by_blocks(query, key, value, mask.visible, mask.blocks, Dropout(0.0))
        at_once = attend(query, key, value, mask.visible, Dropout(0.0))
        assert len(mask.blocks) > 1 and torch.isfinite(by_blocks).all()
        # Padding, which nobody reads, sees other padding.
        for b, row in enumerate(rows):
            torch.testing.assert_close(by_blocks[b, :, : len(row)], at_once[b, :, : len(row)])
