"""Every rule with which math_answer normalizes a text, in its order, with an example."""

import pytest

from grpo_kit.rewards import math_answer

EXAMPLES = [  # a text, and what the rule of that place makes of it
    (r"\\frac{1}{2}", r"\frac{1}{2}"),
    (r"\displaystyle\lim\limits_x", r"\lim_x"),
    (r"\color{red}5", "5"),
    (r"x\ley", r"x\le y"),
    (r"{5 \choose 2}", r"\binom{5}{2}"),
    (r"\log_e 8", r"\ln  8"),
    (r"\varnothing", r"\emptyset "),
    (r"\left(1,\big)\right.", "(1,)"),
    (r"\lvert x\rvert", "| x|"),
    (r"\langle 1,2", "( 1,2"),
    (r"1,2\rangle", "1,2)"),
    (r"\lbrace 1", r"\{ 1"),
    (r"1\rbrace", r"1\}"),
    (r"1\,234\,567", "1234567"),
    ("3{,}14", "3.14"),
    (r"1\quad 2", "1 ;  2"),
    (r"x\,y~z", "x y z"),
    ("1   2", "1 2"),
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (r"x\leqslant 2", r"x\le  2"),
    ("x>=2", r"x\ge 2"),
    ("x!=2", r"x\neq 2"),
    (r"x\lt2", "x<2"),
    (r"x\gt2", "x>2"),
    (r"2\times 3*x", r"2\cdot  3\cdot x"),
    (r"6\div 2", "6/ 2"),
    (r"\operatorname{arctan}(x)", r"\arctan (x)"),
    (r"\mathbf{v}", "{v}"),
    (r"\mathrm{d}x", "dx"),
    ("the **42**", "the 42"),
    ("x**2", "x^2"),
    ("50 percent", "50%"),
    (r"\$5", " 5"),
    (r"\mathbb R", r"\mathbb{R}"),
    (r"\text{all reals}", " all reals "),
    ("for all real numbers x", r"\mathbb{R}"),
    (r"\mathbb{R} except 2", r"\mathbb{R}\setminus 2"),
    (r"\text{Var}(X)=4", "Var(X)=4"),
    (r"\text{sqrt }3", r"\sqrt 3"),
    (r"3\text{ million}", r"3 million \text{}"),
    (r"1\text{ and }2", "1 and 2"),
    (r"1\text{ or }2", "1 or 2"),
    ("√(2)", r"\sqrt{2}"),
    (r"\sqrt3", r"\sqrt{3}"),
    (r"\frac12", r"\frac{1}2"),
    (r"\frac{1}2", r"\frac{1}{2}"),
    ("4 4/9", r"4\frac{4}{9}"),
    (r"20^\circ C", "20"),
    ("5 cm^2", "5"),
    ("5m/s", "5"),
    ("2pi", r"2\pi "),
    ("sin(x)", r"\sin (x)"),
    (r"\oo", r"\infty "),
    (r"\asin x", r"\arcsin x"),
    ("Rs. 12", "12"),
    ("]2,7]", "(2,7]"),
    ("[2,7[", "[2,7)"),
    ("x^12", "x^{12}"),
    ("x^-2", "x^{-2}"),
    ("x^{2}", "x^2"),
    ("x^2_1", "x_1^2"),
]  # fmt: skip


def test_every_rule_has_an_example():
    assert len(EXAMPLES) == len(math_answer._RULES)


@pytest.mark.parametrize(
    ("rule", "text", "rewritten"), [(rule, *example) for rule, example in zip(math_answer._RULES, EXAMPLES)]
)
def test_a_rule_rewrites_its_example(rule, text, rewritten):
    pattern, replacement = rule
    assert pattern.sub(replacement, text) == rewritten != text


@pytest.mark.parametrize("text", [text for text, _ in EXAMPLES])
def test_all_rules_together_change_nothing_the_second_time(text):
    once = math_answer._normalize(text)
    assert math_answer._normalize(once) == once
