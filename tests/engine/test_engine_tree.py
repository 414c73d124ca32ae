from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dneuro.engine.tree import Tree


@given(st.integers(1, 70), st.randoms(use_true_random=False))
def test_tree__merges_neighbours_in_the_same_order_whoever_is_first(leaves: int, random: object) -> None:
    """Two runs that finish their tasks in different orders build the same expression."""

    def build(shuffle: bool) -> object:
        tree = Tree(leaves)
        ready: list[tuple[int, int, object]] = [(0, place, place) for place in range(leaves)]
        while ready:
            level, place, state = ready.pop(random.randrange(len(ready)) if shuffle else 0)  # type: ignore[attr-defined]
            merge = tree.put(level, place, state)
            if merge is not None:
                ready.append((merge.level, merge.place, (merge.lower, merge.higher)))
        return tree.root

    def flat(state: object) -> list[object]:
        return [leaf for part in state for leaf in flat(part)] if isinstance(state, tuple) else [state]

    def depth(state: object) -> int:
        return 1 + max(map(depth, state)) if isinstance(state, tuple) else 0

    root = build(True)
    assert root == build(False)
    assert flat(root) == list(range(leaves)), "every state once, lower images first"
    assert depth(root) == Tree(leaves).levels == math.ceil(math.log2(leaves))


@given(st.integers(1, 200))
def test_tree__few_states_wait_where_tasks_end_in_order(leaves: int) -> None:
    tree = Tree(leaves)
    waiting = 0
    for place in range(leaves):
        level, state = 0, place
        while (merge := tree.put(level, place, state)) is not None:
            level, place, waiting = merge.level, merge.place, waiting - 1
        waiting += 1
        assert waiting <= tree.levels + 1
