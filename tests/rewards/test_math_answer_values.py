"""The part of math_answer that compares algebra by its values at points, and leaves what is doubtful to math-verify."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_kit.rewards import math_answer


def compare(gold: str, answer: str) -> bool | None:
    return math_answer._compare_values(math_answer._normalize(gold), math_answer._normalize(answer))


EQUAL = [
    ("(x+1)^2", "x^2+2x+1"), (r"\frac{a+b}{2}", r"\frac12(a+b)"), (r"\frac{x^2-4}{x-2}", "x+2"),
    ("0.1x", r"\frac{x}{10}"),
    (r"\sqrt{12}", r"2\sqrt3"), (r"\sqrt{5+2\sqrt6}", r"\sqrt2+\sqrt3"), (r"\sqrt{x^2}", "|x|"),
    (r"\sqrt[3]{-8}", "-2"),
    ("x^{1/3}", r"\sqrt[3]{x}"), (r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}"), ("||x|-1|", "|1-|x||"), ("2|x|", "|2x|"),
    ("(n-2)2^n+1", r"n\cdot 2^n-2^{n+1}+1"),
    (r"\cos 2x", r"1-2\sin^2 x"), (r"\tan\frac{x}{2}", r"\frac{\sin x}{1+\cos x}"), (r"\sin^{-1}x", r"\arcsin x"),
    (r"\sin 15^\circ", r"\frac{\sqrt6-\sqrt2}{4}"), (r"\sin(60^\circ)", r"\frac{\sqrt3}{2}"), ("sin(x)^2", r"\sin^2 x"),
    (r"\sinh x", r"\frac{e^x-e^{-x}}{2}"), ("x*sin(x)+cos(x)", r"\cos x+x\sin x"), (r"\sin x\cos x", r"\frac12\sin 2x"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"), (r"\ln\sqrt{x}", r"\frac12\ln x"), (r"\log 100", "2"), ("log(2)", r"\ln 2"),
    (r"\log x", r"\ln x"), (r"\log x", r"\log_{10}x"), (r"\lg x", r"\log_{10}x"), ("e^{2x}", "(e^x)^2"),
    ("e^{i\\pi}", "-1"), ("(1+2i)(1-2i)", "5"), ("1+2i", "2i+1"), (r"\exp(x)", "e^x"), ("10^{100}", "10^{99}*10"),
    (r"\frac{n(n-1)}{2}", r"\binom{n}{2}"), (r"\binom{10}{3}", "120"), ("5!", "120"), ("a_1+a_2", "a_2+a_1"),
    (r"\sqrt2", "1.41421356"), ("1.414214", r"\sqrt2"), ("0", r"\sin\pi"), ("3/4x", r"\frac{3x}{4}"),
    (r"3/4\sqrt2", r"\frac{3\sqrt2}{4}"), (r"1/2\pi", r"\frac{\pi}{2}"), ("y=2x+3", "2x-y+3=0"), ("x<1", "-x>-1"),
    ("x^2+y^2=4", r"\frac{x^2}{4}+\frac{y^2}{4}=1"), (r"|x-5|+y\le 2", r"2\ge y+|5-x|"), (r"x\neq y", r"y-x\neq 0"),
]  # fmt: skip
UNEQUAL = [
    ("(x+1)^2", "x^2+2x"), (r"\sqrt{x^2}", "x"), ("|x-5|", "5-x"), ("|xz|", "xz"), ("|aX|", "aX"),
    (r"\sqrt{b^2d^2}", "bd"), (r"\sqrt{(x-700)^2}", "700-x"), ("x", "X"),
    (r"\arctan x+\arctan\frac1x", r"\frac{\pi}{2}"), (r"\arctan(\tan\frac{x}{2})", r"\frac{x}{2}"), ("x_1", "x_2"),
    (r"\arcsin(\sin x)", "x"), (r"\sqrt{x}", r"-\sqrt{x}"), (r"\ln(x+y)", r"\ln x+\ln y"), (r"\ln x", r"\log_2 x"),
    ("10^{100}", "10^{100}+1"), (r"\sqrt2", "1.414215"), (r"\sqrt2", "1.4142"), (r"\sqrt2", r"\sqrt3"), ("e", r"\pi"),
    (r"\sin^{-1}x", r"\frac{1}{\sin x}"), (r"\sin x^2", r"\sin^2 x"), ("1+2i", "1-2i"), ("y=2x+3", "y=2x"),
    ("x<1", "-x<-1"), ("x<1", r"x\le1"), ("y^2=x", "y=x"), (r"\binom{n}{2}", r"\binom{n}{3}"),
    ("2^{x^{x^x}}", "3^{x^{x^x}}"),
]  # fmt: skip
LEFT_TO_MATH_VERIFY = [  # two meanings, branches, too few digits, too costly, or not known here
    (r"\ln x^2", r"2\ln x"), (r"\sqrt{x}\sqrt{y}", r"\sqrt{xy}"), (r"\ln\frac{x}{y}", r"\ln x-\ln y"),
    ("x/2y", "x/(2y)"),
    ("f(x)", "fx"), ("dog", "god"), (r"2\frac12x", r"\frac52x"), ("3/4x", r"\frac{3}{4x}"), (r"\sin\pi/2", "1"),
    ("I", "i"),
    (r"\sqrt2", r"\sqrt2+10^{-40}"), (r"\sqrt2+10^{40}", r"10^{40}+\sqrt3"), ("9^{9^9}", "1"), ("x^{100000000}", "x"),
    ("e^{e^{e^{e^9}}}", "1"), ("((9!)!)!", "1"), (r"\lfloor x\rfloor", "x"), (r"\int_0^1x\,dx", r"\frac12"),
    ("n!", "n"),
    (r"\sum_{k=1}^n k", "n"), (r"\infty", "1"), (r"\sin x y", r"y\sin x"), (r"\sin x\cdot y", r"\sin(xy)"),
    ("x2", "2x"),
    ("", "x"), ("()", "x"), (".", "x"), ("x^", "x"), ("1=1", "2=2"), ("a<b<c", "c>b>a"), (r"x^{\sqrt{x^{99}}}", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_values_are_equal_in_both_orders(gold, answer):
    assert compare(gold, answer) is True
    assert compare(answer, gold) is True


@pytest.mark.parametrize(("gold", "answer"), UNEQUAL)
def test_other_values_are_unequal_in_both_orders(gold, answer):
    assert compare(gold, answer) is False
    assert compare(answer, gold) is False


@pytest.mark.parametrize(("gold", "answer"), LEFT_TO_MATH_VERIFY)
def test_what_is_doubtful_is_left_to_math_verify(gold, answer):
    assert compare(gold, answer) is None


def test_without_mpmath_fractions_are_compared_and_the_rest_is_left_to_math_verify(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mpmath", None)
    math_answer._precise.cache_clear()
    math_answer._compile.cache_clear()
    assert compare("(x+2)^2", "x^2+4x+4") is True
    assert compare("(x+2)^2", "x^2+4x") is False
    assert compare(r"\sqrt{18}", r"3\sqrt2") is None


def test_the_callers_precision_neither_matters_nor_changes():
    import mpmath

    before, mpmath.mp.dps = mpmath.mp.dps, 3
    try:
        assert compare(r"\sqrt{1000001}", "1000.0006") is False
        assert mpmath.mp.dps == 3
    finally:
        mpmath.mp.dps = before


COSTLY = [
    "9^{9^9}", "x^{x^{x^{x^x}}}", "2^{" * 14 + "x" + "}" * 14, r"\sqrt{" * 14 + "x" + "}" * 14,
    r"\frac{1}{1+" * 14 + "x" + "}" * 14,
    "(" * 15 + "x" + ")" * 15, r"\sin(" * 14 + "x" + ")" * 14, "x^{499}" * 40, "(x+1)^{500}" * 20,
    "+".join(["x^{499}"] * 40),
    "300!" * 60, r"\binom{2000}{500}" * 20, "(9!)^{500}", r"\sqrt[99]{x^{499}}" * 9, "e^{" * 10 + "x" + "}" * 10,
    "|" * 40 + "x" + "|" * 40,
    r"\tan(\tan(\tan(\tan(7))))", "(x^{500}+1)^{500}", "0." + "9" * 280 + "x", "9" * 280 + r"\pi",
    r"\arcsin(\arccos(x^{99}))" * 9,
    r"\cosh(\sinh(\cosh(x)))", "i^{i^{i^i}}", r"(1+i)^{\pi^{e^{i}}}", "x!" * 50, "-" * 300 + "x",
    "((x^{400})^{400})^{400}",
]  # fmt: skip


@pytest.mark.parametrize("text", COSTLY)
def test_a_costly_text_takes_little_time(text):
    start = time.process_time()
    for gold in ("x", r"\sqrt2", "x^2+1", text + "+1"):
        compare(gold, text)
    assert time.process_time() - start < 5.0  # of the processor; about 0.1 s is usual


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(
            [*"xyei123.()[]{}|+-/^_!=< ", r"\sin ", r"\ln", r"\log_", r"\sqrt", r"\frac", r"\pi ", r"\cdot ", r"\binom"]
        ),
        max_size=30,
    ).map("".join)
)
def test_any_text_is_compared_or_left(text):
    assert math_answer._compare_values(text, "x+1") in (True, False, None)
    assert math_answer._compare_values(text, text) is not False


def list_expressions(rng: random.Random, count: int) -> list:
    """Random expressions of sympy with an equal one in another form, and an unequal one."""
    import sympy as sp

    x, y = sp.symbols("x y")
    rewrite = [
        sp.expand,
        sp.factor,
        sp.together,
        sp.expand_trig,
        sp.radsimp,
        sp.powsimp,
        lambda e: sp.expand(e).collect(x),
    ]
    pairs = []
    while len(pairs) < count:
        a, b, c = (rng.choice((1, -1)) * rng.randint(1, 9) for _ in range(3))
        forms = [
            (x + a) * (b * x + c), (x + a) ** 2 * (y + b), (a * x + b) / (x**2 + abs(c)), a / (x + b) + c / (x + 10),
            sp.sqrt(b * b + abs(c)) * x + a, 1 / (sp.sqrt(abs(b) + 1) + abs(c) + 9), a * sp.sin(2 * x) + b,
            a * sp.cos(3 * x) + b,
            a * sp.sin(x + y), (sp.exp(x) + a) ** 2, sp.exp(x + a) * sp.exp(b * y),
            (sp.sqrt(5) + a) ** 3, sp.pi * (x + a) ** 2,
            (a + b * sp.I) * (c + sp.I), sp.Abs(x + a) * (b * x + c),
            (x - y) ** 4 + a * x * y, sp.sqrt(x) * (sp.sqrt(x) + a),
        ]  # fmt: skip
        form = rng.choice(forms)
        other = rng.choice(rewrite)(form)
        if other != form:
            pairs.append((sp.latex(form), sp.latex(other), sp.latex(other + rng.choice([1, -1, sp.Rational(1, 2)]))))
    return pairs


@pytest.mark.slow
def test_rewritten_expressions_are_equal_and_changed_ones_are_not():
    pairs = list_expressions(random.Random(3), 150)
    assert [pair for pair in pairs if compare(pair[0], pair[1]) is not True] == []
    assert [pair for pair in pairs if compare(pair[0], pair[2]) is not False] == []
