"""Floats as the Prometheus client for Python writes them (`floatToGoString`), a whole column at a time. Pure.

Arrow and Python both print the shortest digits that read back as the same float, so only the form differs. Arrow's text is taken as it
is where the forms agree, and is put right by string kernels, or by Python for the few that are left:

    value                   Arrow            the client
    3.0, -0.0               3, -0            3.0, -0.0
    1234567.5               1234567.5        1.2345675e+06     positive and at least 1e6
    -2e15                   -2e+15           -2000000000000000.0
    0.00001                 0.00001          1e-05             from here down to 1e-10
    1.5e-7                  1.5e-7           1.5e-07
    infinite, NaN           inf, nan         +Inf, -Inf, NaN
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client.utils import floatToGoString

Floats = npt.NDArray[np.float64]

_EXPONENT_FROM: Final = 1e6  # the client changes to an exponent here, for positive values
_ARROW_EXPONENT_FROM: Final = 1e10
_PYTHON_EXPONENT_FROM: Final = 1e16
_DECIMAL_FROM: Final = 1e-4
_ARROW_DECIMAL_FROM: Final = 1e-6
_ONE_DIGIT_FROM: Final = 1e-9  # below it an exponent has two digits by itself
_POWERS: Final[Floats] = np.array([1e7, 1e8, 1e9])  # exact, as all powers of ten up to 1e22 are
_EXPONENTS: Final = pa.array([f"e+{power:02d}" for power in range(6, 10)])


def texts(values: Floats) -> tuple[pa.Array, pa.Array]:
    """Return two string columns whose rows, put together, are the numbers: digits, and ".0" or nothing."""
    digits = pa.array(values, pa.float64()).cast(pa.string())
    size = np.abs(values)
    finite = np.isfinite(values)
    whole = (np.trunc(values, where=finite, out=np.full(values.shape, np.nan)) == values) & (size < _ARROW_EXPONENT_FROM)
    large = (values >= _EXPONENT_FROM) & (values < _ARROW_EXPONENT_FROM)
    micro = (values < _DECIMAL_FROM) & (values >= _ARROW_DECIMAL_FROM)
    nano = (size < _ARROW_DECIMAL_FROM) & (size >= _ONE_DIGIT_FROM)
    negative = (values <= -_ARROW_EXPONENT_FROM) & (values > -_PYTHON_EXPONENT_FROM)
    negative |= (values > -_DECIMAL_FROM) & (values <= -_ARROW_DECIMAL_FROM)
    forms = ((large, _of_large), (micro, _of_micro), (nano, _of_nano), (negative | ~finite, _by_the_client))
    for mask, form in forms:
        if mask.any():
            digits = pc.replace_with_mask(digits, mask, form(digits.filter(pa.array(mask)), values[mask]))
    return digits, pc.if_else(pa.array(whole & ~large), ".0", "")


def _of_large(decimals: pa.Array, values: Floats) -> pa.Array:
    """Return 1234567.5 as 1.2345675e+06."""
    exponents = _EXPONENTS.take(pa.array(np.searchsorted(_POWERS, values, side="right")))
    return _scientific(pc.replace_substring(decimals, ".", ""), exponents)


def _of_micro(decimals: pa.Array, values: Floats) -> pa.Array:
    """Return 0.000015 as 1.5e-05."""
    return _scientific(pc.utf8_ltrim(decimals, "0."), pc.if_else(pa.array(values < 1e-5), "e-06", "e-05"))


def _scientific(digits: pa.Array, exponents: pa.Array) -> pa.Array:
    first, rest = pc.utf8_slice_codeunits(digits, 0, 1), pc.utf8_slice_codeunits(digits, 1)
    mantissa = pc.utf8_rtrim(pc.binary_join_element_wise(first, rest, "."), "0.")
    return pc.binary_join_element_wise(mantissa, exponents, "")


def _of_nano(scientific: pa.Array, _values: Floats) -> pa.Array:
    """Return 1.5e-7 as 1.5e-07."""
    return pc.replace_substring(scientific, "e-", "e-0")


def _by_the_client(_texts: pa.Array, values: Floats) -> pa.Array:
    return pa.array([floatToGoString(value) for value in values.tolist()], pa.string())
