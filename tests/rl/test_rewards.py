"""Reward terms: shaping telescopes and keeps the optimal policy; the breakdown adds up; mistakes are named."""

import numpy as np
import pytest
import torch

from pretrained.types import ObsBatch
from rl.proposals.constant import Constant
from rl.rewards import build_terms, combine, needs
from rl.rewards.change import Change
from rl.rewards.progress import Progress
from rl.rewards.sparse import Sparse
from rl.rewards.steps import Steps
from rl.types import Segment

GAMMA = 0.9


def make_segment(n=2, t=5, seed=0, **changes):
    rng = torch.Generator().manual_seed(seed)
    no = torch.zeros(n, t, dtype=torch.bool)
    fields = {
        "features": {},
        "texts": [""],
        "text_id": torch.zeros(n, t, dtype=torch.int64),
        "trace": torch.zeros(n, t, 2, 1, 1),
        "log_prob": torch.zeros(n, t, 1),
        "active": torch.ones(n, t, 1, dtype=torch.bool),
        "value": torch.zeros(n, t),
        "next_value": torch.zeros(n, t),
        "env_reward": torch.rand(n, t, generator=rng),
        "duration": torch.randint(1, 5, (n, t), generator=rng),
        "terminated": no,
        "truncated": no,
        "starts": no,
        "valid": ~no,
        "memory": {},
        "version": 0,
    }
    return Segment(**{**fields, **changes})


def episode(ended, t=6):
    """One episode of t decisions; what is after decision i is before decision i + 1."""
    phi = torch.rand(t + 1, generator=torch.Generator().manual_seed(1))
    last = torch.zeros(1, t, dtype=torch.bool)
    last[0, -1] = True
    duration = torch.tensor([[3, 1, 4, 2, 4, 1]])
    privileged = {"progress": torch.stack([phi[:-1], phi[1:]], dim=-1)[None].double()}
    return phi, make_segment(1, t, duration=duration, privileged=privileged, **{ended: last})


@pytest.mark.parametrize("ended", ["terminated", "truncated"])
def test_shaping_telescopes(ended):
    phi, segment = episode(ended)
    shaped = Progress()(segment, GAMMA)[0]
    elapsed = torch.cat([torch.zeros(1, dtype=torch.int64), segment.duration[0].cumsum(0)])
    total = (GAMMA ** elapsed[:-1].float() * shaped).sum()
    kept = 0.0 if ended == "terminated" else GAMMA ** float(elapsed[-1]) * phi[-1]
    torch.testing.assert_close(total, kept - phi[0])


def test_dense_pays_what_was_reached():
    phi, segment = episode("terminated")
    torch.testing.assert_close(Progress(mode="dense")(segment, GAMMA)[0], phi[1:])


def test_rows_that_are_not_valid_pay_nothing():
    _, segment = episode("truncated")
    segment.valid = torch.tensor([[True, True, False, True, True, True]])
    segment.privileged["progress"][0, 2] = float("nan")
    for mode in ("pbrs", "dense"):
        reward = Progress(mode=mode)(segment, GAMMA)
        assert reward[0, 2] == 0.0
        assert torch.isfinite(reward).all()
        assert (reward[0, [0, 1, 3, 4, 5]] != 0.0).all()


def corridor_policy(reward_of):
    """Value iteration on a corridor of 7 cells with the goal (paying 1, terminal) at cell 2 and a trap of small pay.

    Actions: left, right, and stay; staying in cell 6 pays 0.05 for ever. Returns the greedy action of each cell."""
    cells, goal, moves = 7, 2, (-1, 1, 0)
    value = np.zeros(cells)
    for _ in range(500):
        q = np.zeros((cells, 3))
        for s in range(cells):
            for a, move in enumerate(moves):
                after = min(max(s + move, 0), cells - 1)
                done = after == goal
                pay = float(done) + 0.05 * (s == 6 and move == 0)
                q[s, a] = pay + reward_of(s, after, done) + GAMMA * (not done) * value[after]
        value = q.max(axis=1)
    # the goal is terminal: there is nothing to decide
    return [int(q[s].argmax()) for s in range(cells) if s != goal]


def test_shaping_keeps_the_optimal_policy_and_dense_does_not():
    potential = np.random.default_rng(3).uniform(size=7)  # any potential will do, a misleading one too

    def term(mode):
        def pay(s, after, done):
            progress = torch.tensor([[[potential[s], potential[after]]]])
            one = torch.ones(1, 1, dtype=torch.int64)
            segment = make_segment(
                1, 1, duration=one, terminated=torch.tensor([[done]]), privileged={"progress": progress}
            )
            return float(Progress(mode=mode)(segment, GAMMA))

        table = {(s, a, d): pay(s, a, d) for s in range(7) for a in range(7) for d in (False, True)}
        return lambda s, after, done: table[s, after, done]

    plain = corridor_policy(lambda s, after, done: 0.0)
    assert plain == [1, 1, 0, 0, 0, 0]
    assert corridor_policy(term("pbrs")) == plain
    assert corridor_policy(term("dense")) != plain


def test_combine_weighs_and_reports():
    _, segment = episode("terminated")
    segment.valid = torch.tensor([[True, True, True, True, True, False]])
    nodes = {
        "success": {"weight": 2.0, "term": {"_target_": "rl.rewards.sparse.Sparse"}},
        "progress": {"weight": 0.5, "term": {"_target_": "rl.rewards.progress.Progress", "mode": "pbrs"}},
        "off": {"weight": 0, "term": {"_target_": "rl.rewards.progress.Progress", "key": "absent"}},
    }
    terms = build_terms(nodes)
    assert needs(terms) == {"privileged"}
    assert needs({"success": terms["success"]}) == frozenset()
    total, breakdown = combine(terms, segment, GAMMA)
    expected = 2.0 * segment.env_reward + 0.5 * Progress()(segment, GAMMA)
    torch.testing.assert_close(total[:, :5], expected[:, :5])
    assert total[0, 5] == 0.0
    assert set(breakdown) == {"reward/success", "reward/progress", "reward/total"}
    assert breakdown["reward/success"] == pytest.approx(float(2.0 * segment.env_reward[0, :5].mean()))
    assert breakdown["reward/total"] == pytest.approx(breakdown["reward/success"] + breakdown["reward/progress"])
    assert breakdown["reward/total"] == pytest.approx(float(total[0, :5].mean()))


def test_zero_weight_is_not_even_computed():
    def explode(segment, gamma):
        raise AssertionError("computed")

    explode.needs = frozenset({"frames"})
    total, breakdown = combine({"off": {"weight": 0.0, "term": explode}}, make_segment(), GAMMA)
    assert not total.any()
    assert breakdown == {"reward/total": 0.0}


def test_mistakes_are_named():
    segment = make_segment()
    term = {"weight": 1.0, "term": Progress()}
    with pytest.raises(ValueError, match="reward 'shape' needs privileged"):
        combine({"shape": term}, segment, GAMMA)
    with pytest.raises(ValueError, match="'a' appears twice"):
        combine([("a", {"weight": 1.0, "term": Sparse()}), ("a", term)], segment, GAMMA)
    with pytest.raises(ValueError, match="'total' is reserved"):
        combine({"total": term}, segment, GAMMA)
    with pytest.raises(ValueError, match="expected {weight: number, term: node}"):
        build_terms({"a": {"wieght": 1.0, "term": {}}})
    with pytest.raises(TypeError, match="build_terms"):
        combine({"a": {"weight": 1.0, "term": {"_target_": "rl.rewards.sparse.Sparse"}}}, segment, GAMMA)
    segment.privileged = {"reach": torch.zeros(2, 5, 2)}
    with pytest.raises(ValueError, match=r"no privileged 'progress', only \['reach'\]"):
        combine({"shape": term}, segment, GAMMA)
    segment.privileged = {"progress": torch.zeros(2, 5, 2, 3)}
    with pytest.raises(ValueError, match="expected one number each"):
        combine({"shape": term}, segment, GAMMA)
    segment.env_reward[1, 2] = float("nan")
    with pytest.raises(ValueError, match="'success' is nan at stream 1, decision 2"):
        combine({"success": {"weight": 1.0, "term": Sparse()}}, segment, GAMMA)
    with pytest.raises(ValueError, match="mode 'shaped'"):
        Progress(mode="shaped")


def test_constant_proposal():
    obs = ObsBatch(images={}, proprio=np.zeros((3, 1, 2), dtype=np.float32), texts=["a", "b", "c"])
    fixed = Constant(value=(1.0, 2.0))(obs, torch.Generator())
    torch.testing.assert_close(fixed["plan"], torch.tensor([[1.0, 2.0]] * 3))
    noisy = Constant(value=(0.0, 0.0), noise=1.0, name="goal", every=4)
    first, again = (noisy(obs, torch.Generator().manual_seed(s))["goal"] for s in (5, 5))
    torch.testing.assert_close(first, again)
    assert not torch.equal(first[0], first[1])
    with pytest.raises(ValueError, match="every >= 1"):
        Constant(every=0)


def test_change_pays_what_a_total_grew_by_and_steps_what_time_costs():
    total = torch.tensor([[[0.0, 1.0], [1.0, 1.0], [0.0, 2.5]]]).double()
    segment = make_segment(1, 3, privileged={"collisions": total})
    assert Change(key="collisions")(segment, GAMMA).tolist() == [[1.0, 0.0, 2.5]]
    assert Steps()(segment, GAMMA).tolist() == segment.duration.tolist()
    lost = make_segment(1, 3, privileged={"collisions": total * float("nan")}, valid=torch.zeros(1, 3).bool())
    assert Change(key="collisions")(lost, GAMMA).tolist() == [[0.0] * 3]
    with pytest.raises(ValueError, match="no privileged 'collisons', only .'collisions'"):
        Change(key="collisons")(segment, GAMMA)
    with pytest.raises(ValueError, match="has shape"):
        Change(key="collisions")(make_segment(1, 3, privileged={"collisions": total[..., None]}), GAMMA)
