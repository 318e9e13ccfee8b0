"""Written multiplication and division, one digit a line, every equation exact.

A model that writes these lines from left to right multiplies by a single digit, adds once, and compares; no line has
more than two equations.
"""

from decimal import ROUND_HALF_UP, Decimal


def round_half_up(value: Decimal, decimals: int = 2) -> Decimal:
    """Halves up, as by hand."""
    return value.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)


def plain(value: Decimal) -> str:
    """A number without zeros at its end: `4.9`, `130`."""
    return f"{value.normalize():f}"


def split_digits(value: Decimal) -> list[Decimal]:
    """The parts that a positive number is the sum of, one for each digit that is not 0.

    >>> [plain(part) for part in split_digits(Decimal("20.08"))]
    ['20', '0.08']
    """
    _, digits, exponent = value.as_tuple()
    places = range(len(digits) - 1 + exponent, exponent - 1, -1)
    return [Decimal(digit).scaleb(place) for digit, place in zip(digits, places) if digit]


def write_product(value: Decimal, by: Decimal) -> tuple[list[str], Decimal]:
    """(lines, product): one number times each digit of the other, the largest first, added up at once.

    The digits are those of `by`, or of `value` if it has fewer that are not 0.

    >>> write_product(Decimal("1.5"), Decimal("2.4"))
    (['1.5 * 2 = 3', '1.5 * 0.4 = 0.6, 3 + 0.6 = 3.6'], Decimal('3.60'))
    """
    if len(split_digits(value)) < len(split_digits(by)):
        value, by = by, value
    lines, total = [], Decimal(0)
    for part in split_digits(by):
        product = value * part
        line = f"{plain(value)} * {plain(part)} = {plain(product)}"
        if lines:
            line += f", {plain(total)} + {plain(product)} = {plain(total + product)}"
        lines.append(line)
        total += product
    return lines, total


def write_quotient(value: Decimal, by: Decimal, decimals: int) -> tuple[list[str], Decimal]:
    """(lines, quotient): the digits of `value / by` to one decimal more, then rounded, halves up.

    >>> write_quotient(Decimal("3"), Decimal("8"), 2)[0]
    ['8 * 0.3 = 2.4, 3 - 2.4 = 0.6', '8 * 0.07 = 0.56, 0.6 - 0.56 = 0.04', '8 * 0.005 = 0.04, 0.04 - 0.04 = 0', \
'0.3 + 0.07 + 0.005 = 0.375, rounded 0.38']
    """
    lines, parts = [], split_digits((value / by).quantize(Decimal(1).scaleb(-decimals - 1), rounding="ROUND_DOWN"))
    for part in parts:
        product = by * part
        lines.append(f"{plain(by)} * {plain(part)} = {plain(product)}, {plain(value)} - {plain(product)} = "
                     f"{plain(value - product)}")  # fmt: skip
        value -= product
    whole = sum(parts, Decimal(0))
    quotient = round_half_up(whole, decimals)
    sums = f"{' + '.join(map(plain, parts))} = {plain(whole)}" if len(parts) > 1 else plain(whole)
    lines.append(f"{sums}, rounded {plain(quotient)}" if quotient != whole else sums)
    return lines, quotient
