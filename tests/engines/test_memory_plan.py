"""Which way of holding the engines fits: facts of the arithmetic, for any sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.engines.memory_plan import (
    HOLDINGS,
    RESERVE_BYTES,
    EngineSize,
    parse_size,
    peak_bytes,
    plan_memory,
    read_memory,
)
from refdiff.errors import EngineError, InputError

MB = 10**6

sizes = st.lists(
    st.builds(
        EngineSize,
        name=st.sampled_from("abc"),
        weights=st.integers(0, 10**10),
        activations=st.integers(0, 10**10),
        tensors=st.integers(0, 10**9),
    ),
    min_size=1,
    max_size=8,
)


def engine(name: str, weights: int, activations: int, tensors: int = 0) -> EngineSize:
    return EngineSize(name=name, weights=weights * MB, activations=activations * MB, tensors=tensors * MB)


PAIR = (engine("unet", 500, 300, 10), engine("sam", 700, 200, 20))


@pytest.mark.slow
@given(sizes)
def test_a_slower_holding_never_takes_more(engines: list[EngineSize]) -> None:
    resident, shared, staged = (peak_bytes(engines, each) for each in HOLDINGS)
    assert resident >= shared >= staged


@given(sizes, st.integers(0, 10**11), st.none() | st.integers(1, 10**11))
def test_a_plan_stays_within_what_is_free_and_allowed(
    engines: list[EngineSize], free: int, budget: int | None
) -> None:
    try:
        plan = plan_memory(engines, free=free, budget=budget)
    except EngineError:
        assert peak_bytes(engines, "staged") > min(free - RESERVE_BYTES, budget or free)
        return
    assert plan.peak == peak_bytes(engines, plan.holding) <= plan.limit <= max(free - RESERVE_BYTES, 0)
    assert budget is None or plan.limit <= budget
    faster = HOLDINGS[: HOLDINGS.index(plan.holding)]
    assert all(peak_bytes(engines, each) > plan.limit for each in faster)


@given(sizes, st.integers(0, 10**10), st.integers(0, 10**10))
def test_more_memory_never_gives_a_slower_holding(engines: list[EngineSize], free: int, more: int) -> None:
    try:
        tight = plan_memory(engines, free=free)
    except EngineError:
        return
    assert HOLDINGS.index(plan_memory(engines, free=free + more).holding) <= HOLDINGS.index(tight.holding)


@given(sizes)
def test_what_a_refusal_asks_for_is_enough(engines: list[EngineSize]) -> None:
    least = peak_bytes(engines, "staged")
    if least < 2:
        return
    with pytest.raises(EngineError, match="give --memory") as refused:
        plan_memory(engines, free=10**12, budget=1)
    asked, _ = read_memory(str(refused.value).split("--memory ")[1].split(" or more")[0])
    assert plan_memory(engines, free=10**12, budget=asked).holding in HOLDINGS


@pytest.mark.parametrize(("free_mb", "expected"), [(2000, "resident"), (1600, "shared"), (1000, "staged")])
def test_the_fastest_holding_that_fits_is_chosen(free_mb: int, expected: str) -> None:
    plan = plan_memory(PAIR, free=free_mb * MB + RESERVE_BYTES)
    assert plan.holding == expected
    assert plan.reason.startswith(f"{expected} takes ")


def test_a_budget_forces_what_free_memory_would_not() -> None:
    assert plan_memory(PAIR, free=10**10, budget=940 * MB).holding == "staged"


def test_a_holding_can_be_named() -> None:
    assert plan_memory(PAIR, free=10**10, holding="staged").holding == "staged"
    with pytest.raises(EngineError, match=r"1\.6GB are free, they take: resident 1\.8GB.*--memory shared"):
        plan_memory(PAIR, free=1600 * MB + RESERVE_BYTES, holding="resident")


def test_nothing_that_fits_is_refused_with_what_would() -> None:
    with pytest.raises(EngineError) as refused:
        plan_memory(PAIR, free=500 * MB + RESERVE_BYTES)
    assert str(refused.value) == (
        "the engines do not fit: 500MB are free, they take: resident 1.8GB, shared 1.6GB, staged 930MB "
        "(largest: sam); end other programs on the device, take a more compact precision (fp16, int8), "
        "or export for smaller images"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (None, None)),
        ("8GB", (8 * 10**9, None)),
        (" 1.5 gib ", (3 << 29, None)),
        ("900MiB", (900 << 20, None)),
        ("4096", (4096, None)),
        ("Staged", (None, "staged")),
    ],
)
def test_memory_is_read_as_a_size_or_a_holding(text: str | None, expected: tuple) -> None:
    assert read_memory(text) == expected


@pytest.mark.parametrize("text", ["", "8 apples", "-1GB", "0", "GB", "1e9", "nan", "0.1"])
def test_memory_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r'expected a size such as "8GB".* or one of: resident, shared'):
        read_memory(text)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="budget of 0 bytes"):
        plan_memory(PAIR, free=10**10, budget=0)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512 MiB", 512 << 20), ("1.5gb", 1_500_000_000), ("100", 100), ("7kB", 7000)],
)
def test_a_size_is_read_as_people_write_it(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "4 XB", "0", "4GB!", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match='such as "8GB"'):
        parse_size(text)
