"""The search for a smallest set of nodes, over functions of every kind."""

from collections.abc import Callable, Iterable
from math import ceil, log2

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from refdiff.calibration.bisection import BudgetExhausted, SearchBudget, find_smallest

ENOUGH = 10_000

names = st.builds("{}{}".format, st.sampled_from(["", "a/", "b/", "b/c/"]), st.sampled_from("xyz"))
answers = st.binary(min_size=8, max_size=8).map(lambda each: int.from_bytes(each, "big"))
"""One bit for each set of at most six nodes."""

few_nodes = st.lists(names, min_size=1, max_size=6, unique=True)
many_nodes = st.lists(
    st.builds("m{}/n{}".format, st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=40, unique=True
)


class Asked:
    """A question that keeps a list of what it was asked."""

    def __init__(self, answer: Callable[[frozenset[str]], bool]) -> None:
        self._answer = answer
        self.sets: list[frozenset[str]] = []

    def __call__(self, nodes: frozenset[str]) -> bool:
        self.sets.append(nodes)
        return self._answer(nodes)


def any_answer(nodes: list[str], bits: int) -> Callable[[frozenset[str]], bool]:
    """One bit for each set of nodes; all of them together are inside, as a search expects."""

    def answer(kept: frozenset[str]) -> bool:
        number = sum(1 << index for index, node in enumerate(nodes) if node in kept)
        return len(kept) == len(nodes) or bool(bits >> number & 1)

    return answer


def needs(*needed: Iterable[str]) -> Callable[[frozenset[str]], bool]:
    """Inside with all nodes of any one of these sets."""
    return lambda kept: any(kept.issuperset(each) for each in needed)


@given(few_nodes, answers, st.lists(names, max_size=4))
def test_what_is_found_is_inside_and_no_node_of_it_can_be_left_out(
    nodes: list[str], bits: int, guess: list[str]
) -> None:
    answer = any_answer(nodes, bits)
    found = find_smallest(nodes, SearchBudget(answer, most=ENOUGH), guess=guess)
    assert found.minimal
    assert answer(frozenset(found.nodes))
    assert not any(answer(frozenset(found.nodes) - {node}) for node in found.nodes)


@given(few_nodes, answers, st.lists(names, max_size=4))
def test_nodes_come_in_the_graphs_order(nodes: list[str], bits: int, guess: list[str]) -> None:
    found = find_smallest(nodes, SearchBudget(any_answer(nodes, bits), most=ENOUGH), guess=guess)
    assert list(found.nodes) == [node for node in nodes if node in found.nodes]


@given(few_nodes, answers, st.lists(names, max_size=4))
def test_nothing_is_tried_twice_and_every_trial_is_counted(
    nodes: list[str], bits: int, guess: list[str]
) -> None:
    asked = Asked(any_answer(nodes, bits))
    found = find_smallest(nodes, SearchBudget(asked, most=ENOUGH), guess=guess)
    assert found.trials == len(asked.sets) == len(set(asked.sets))


@given(few_nodes, answers, st.lists(names, max_size=4), st.integers(0, 12))
@example(["x", "y"], 0, [], 0)
def test_when_trials_run_out_the_smallest_set_that_was_inside_is_left(
    nodes: list[str], bits: int, guess: list[str], most: int
) -> None:
    asked = Asked(any_answer(nodes, bits))
    whole = find_smallest(nodes, SearchBudget(any_answer(nodes, bits), most=ENOUGH), guess=guess)
    found = find_smallest(nodes, SearchBudget(asked, most=most), guess=guess)
    assert len(asked.sets) == found.trials == min(most, whole.trials)
    assert found.minimal == (whole.trials <= most)
    if found.minimal:
        assert found == whole
    else:
        inside = [kept for kept in asked.sets if any_answer(nodes, bits)(kept)]
        assert len(found.nodes) == min(map(len, inside), default=len(nodes))
        assert frozenset(found.nodes) in {*inside, frozenset(nodes)}


@given(st.data(), many_nodes)
def test_of_nodes_that_are_all_needed_exactly_those_are_found(data: st.DataObject, nodes: list[str]) -> None:
    needed = data.draw(st.sets(st.sampled_from(nodes)))
    guess = data.draw(st.lists(st.sampled_from(nodes)))
    assert set(find_smallest(nodes, SearchBudget(needs(needed), most=ENOUGH), guess=guess).nodes) == needed


@given(st.data(), many_nodes)
def test_trials_grow_with_the_needed_nodes_and_the_logarithm_of_all(
    data: st.DataObject, nodes: list[str]
) -> None:
    needed = data.draw(st.sets(st.sampled_from(nodes), max_size=4))
    found = find_smallest(nodes, SearchBudget(needs(needed), most=ENOUGH))
    halvings = ceil(log2(len(nodes)))  # of modules there are no more than nodes
    assert found.trials <= 2 * (1 + len(needed) * (1 + halvings)) + len(needed)


@pytest.mark.slow
@given(st.data(), many_nodes)
def test_a_guess_that_suffices_keeps_the_search_inside_it(data: st.DataObject, nodes: list[str]) -> None:
    needed = data.draw(st.sets(st.sampled_from(nodes), min_size=1))
    guess = needed | data.draw(st.sets(st.sampled_from(nodes)))
    assume(len(guess) < len(nodes))
    asked = Asked(needs(needed))
    find_smallest(nodes, SearchBudget(asked, most=ENOUGH), guess=sorted(guess))
    assert all(kept <= guess for kept in asked.sets)


@pytest.mark.slow
@given(st.data(), many_nodes)
def test_a_guess_that_does_not_suffice_costs_one_trial(data: st.DataObject, nodes: list[str]) -> None:
    needed = data.draw(st.sets(st.sampled_from(nodes), min_size=1))
    guess = data.draw(st.sets(st.sampled_from(nodes), min_size=1))
    assume(not needed <= guess)
    without = find_smallest(nodes, SearchBudget(needs(needed), most=ENOUGH))
    found = find_smallest(nodes, SearchBudget(needs(needed), most=ENOUGH), guess=sorted(guess))
    assert found.nodes == without.nodes
    assert without.trials <= found.trials <= without.trials + 1


@pytest.mark.parametrize(("most", "left"), [(0, 8), (1, 8), (2, 4), (3, 2)])
def test_each_trial_that_was_inside_leaves_fewer_nodes_when_there_are_no_more(most: int, left: int) -> None:
    found = find_smallest(list("abcdefgh"), SearchBudget(needs({"a"}), most=most))
    assert found.nodes == tuple("abcdefgh")[:left]
    assert not found.minimal


def test_of_two_sets_that_suffice_one_is_found_not_both() -> None:
    nodes = ["a/x", "a/y", "b/x", "b/y"]
    found = find_smallest(nodes, SearchBudget(needs({"a/x", "b/y"}, {"a/y"}), most=ENOUGH))
    assert set(found.nodes) in ({"a/x", "b/y"}, {"a/y"})


def test_nodes_that_are_only_inside_together_with_an_unnecessary_one_are_pruned() -> None:
    # More nodes are not always better: with x, y is needed too; without x nothing but z is.
    answers = {frozenset("xyz"), frozenset("xy"), frozenset("z")}
    found = find_smallest(["x", "y", "z"], SearchBudget(lambda kept: kept in answers, most=ENOUGH))
    assert frozenset(found.nodes) in answers
    assert len(found.nodes) < 3


def test_modules_are_tried_before_their_nodes() -> None:
    nodes = [f"{module}/{node}" for module in "abcd" for node in "wxyz"]
    asked = Asked(needs({"c/y"}))
    assert find_smallest(nodes, SearchBudget(asked, most=ENOUGH)).nodes == ("c/y",)
    assert all(len(kept) % 4 == 0 for kept in asked.sets if len(kept) > 4)
    assert len(asked.sets) < 10


def test_where_nothing_is_broken_nothing_is_kept() -> None:
    found = find_smallest(["a", "b"], SearchBudget(lambda _: True, most=ENOUGH))
    assert (found.nodes, found.minimal) == ((), True)
    assert find_smallest([], SearchBudget(lambda _: True, most=ENOUGH)).nodes == ()


def test_names_that_are_no_candidates_are_no_guess() -> None:
    asked = Asked(needs({"b"}))
    assert find_smallest(["a", "b"], SearchBudget(asked, most=ENOUGH), guess=["elsewhere", "b"]).nodes == (
        "b",
    )
    assert all("elsewhere" not in kept for kept in asked.sets)


def test_a_known_answer_costs_no_trial() -> None:
    trials = SearchBudget(needs({"a"}), most=1)
    assert trials(["a", "b"])
    assert trials(["b", "a"])
    assert trials.count == 1
    with pytest.raises(BudgetExhausted):
        trials(["a"])
