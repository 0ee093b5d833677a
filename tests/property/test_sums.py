from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from cluster.metrics.sums import total_of

LARGE = 8.98846567431158e307


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=12), st.randoms())
@example([LARGE, LARGE, LARGE, -math.inf], None)
@example([1.7e308, 1.7e308, -1.7e308, 5e-324], None)
def test_a_sum_is_the_same_in_any_order(parts: list[float], random) -> None:
    """Also where it is too large on the way, or for good, and with infinities and NaNs."""
    total = total_of(parts)
    orders = [parts[::-1], sorted(parts), sorted(parts, key=abs)]
    if random is not None:
        orders.append(random.sample(parts, len(parts)))
    for order in orders:
        found = total_of(order)
        assert found == total or (math.isnan(found) and math.isnan(total)), (order, found, total)
    endless = {part for part in parts if not math.isfinite(part)}
    if endless:
        wanted = sum(endless)
        assert total == wanted or (math.isnan(total) and math.isnan(wanted))


def test_a_sum_that_is_too_large_on_the_way_only_is_exact() -> None:
    """What cancels out cancels out."""
    assert total_of([1.7e308, 1.7e308, -1.7e308, -1.7e308, 3.0]) == 3.0
    assert total_of([1.7e308, 1.7e308]) == math.inf
    assert total_of([]) == 0.0
