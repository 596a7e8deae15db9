"""Blocks of steps: what a problem goes through must not depend on its neighbours or on the size of the blocks."""

import torch

from fvlight.solvers import Adam, Block, Evaluation, Patience, Status, solve_block

ADAM, RULE = Adam(lr=0.05), Patience(max_steps=600, patience=10)


def fresh(raw):
    return Block(
        raw.clone(), torch.zeros_like(raw), torch.zeros_like(raw), torch.zeros(len(raw), dtype=torch.int64),
        RULE.start(len(raw)), torch.full((len(raw),), int(Status.ACTIVE), dtype=torch.int8),
    )  # fmt: skip


def bowl(targets):
    def evaluate(raw):
        score = -((raw - targets) ** 2).sum(1) - (raw * 3).cos().sum(1)
        return Evaluation(score, score[:, None])

    return evaluate


def solve(raw, targets, block_size):
    block = fresh(raw)
    while (block.status == int(Status.ACTIVE)).any():
        solve_block(bowl(targets), block, ADAM, RULE, block_size)
    return block


def test_alone_or_together_and_in_blocks_of_any_size_is_the_same_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    raw, targets = torch.randn(2, 6, 4, generator=generator)
    together = solve(raw, targets, 25)
    assert len(set(together.steps.tolist())) > 1
    for block_size in (1, 7, 200):
        other = solve(raw, targets, block_size)
        assert torch.equal(together.raw, other.raw)
        assert torch.equal(together.steps, other.steps)
    for i in range(6):
        alone = solve(raw[i : i + 1], targets[i : i + 1], 25)
        assert torch.equal(alone.raw[0], together.raw[i])
        assert alone.status[0] == together.status[i]


def test_scores_rise_and_the_limit_of_steps_holds():
    raw, targets = torch.zeros(1, 2), torch.full((1, 2), 1e3)
    block = solve(raw, targets, 50)
    assert block.status.tolist() == [int(Status.MAX_STEPS)]
    assert block.steps.tolist() == [RULE.max_steps]
    assert bowl(targets)(block.raw).score > bowl(targets)(raw).score


def test_a_problem_that_becomes_nan_leaves_the_others_alone():
    def evaluate(raw):
        score = -(raw**2).sum(1) + torch.where(raw[:, 0] > 0.5, 0.0, torch.log(raw[:, 0] - 0.5))
        return Evaluation(score, score[:, None])

    raw = torch.tensor([[2.0, 1.0], [0.4, 1.0]])
    block, alone = fresh(raw), fresh(raw[:1])
    solve_block(evaluate, block, ADAM, RULE, 10)
    solve_block(evaluate, alone, ADAM, RULE, 10)
    assert block.status.tolist() == [int(Status.ACTIVE), int(Status.NAN)]
    assert torch.equal(block.raw[0], alone.raw[0])
    assert block.steps.tolist() == [10, 0]
