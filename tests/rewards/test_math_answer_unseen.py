"""math_answer on pairs and hostile replies that were labelled before it was run on them."""

import pytest

from grpo_kit.rewards import math_answer
from grpo_kit.rewards.math_answer import math_verdict


def b(answer: str) -> str:
    return rf"Therefore $\boxed{{{answer}}}$."


# (subject, verdict): (gold, reply) of each case
PAIRS = {
    ("arithmetic and percentages", "right"): [
        ("64", b("64.00")), ("0.75", b("75%")), ("3.5", b(r"3\tfrac{1}{2}")), ("1000", b("10^3")),
        ("144", "First 12 * 12 = 144.\n\nThe answer is 144."), ("-17", b("-17.0")), ("2.4", b(r"\frac{12}{5}")),
        ("350", "Total cost: 350 dollars.\n#### 350"), ("18", "Thus there are **18** students in the class."),
        ("1/6", b("0.1666666667")), ("45", b(r"45\,\text{minutes}")), ("7.25", r"It costs \boxed{\$7.25}."),
        ("42", "I think it's 42"), ("42", "it's 42"), ("9", "So the total is 9 apples."), ("8", b("x=8")),
        ("0.125", b(r"\frac{1}{8}")), ("15", "The final answer is $\\boxed{15}$"), ("20%", b("0.2")),
    ],
    ("arithmetic and percentages", "wrong"): [
        ("64", b("46")), ("0.75", b("0.57")), ("3.5", b("3.05")), ("1000", b("10^4")),
        ("144", "The answer is 12 * 12."),
        ("-17", b("17")), ("2.4", b(r"\frac{5}{12}")), ("350", "#### 35"), ("1/6", b("0.17")), ("45", b("4.5")),
        ("42", "it's 24"), ("42", "it's not 42"), ("9", b("9!")), ("4", b("8/2")), ("10", r"\binom{5}{2}"),
        ("10", r"\binom52"), ("6", b("3!")), ("4", "The answer is 8/2."),
    ],
    ("roots and surds", "right"): [
        (r"5\sqrt{2}", b(r"\sqrt{50}")), (r"\sqrt{3}-1", b(r"-1+\sqrt{3}")),
        (r"\frac{3\sqrt{5}}{5}", b(r"\frac{3}{\sqrt{5}}")),
        (r"2+\sqrt{3}", b(r"\frac{1}{2-\sqrt{3}}")), (r"\sqrt[3]{4}", b(r"2^{2/3}")),
        (r"\sqrt{7+4\sqrt{3}}", b(r"2+\sqrt{3}")),
        (r"\frac{\sqrt{6}}{3}", b(r"\sqrt{\frac{2}{3}}")), ("sqrt(3)/2", b(r"\frac{\sqrt{3}}{2}")),
        (r"\frac{1+\sqrt{5}}{2}", b("1.6180339887")), (r"\sqrt[4]{9}", b(r"\sqrt{3}")),
        (r"3\sqrt[3]{2}", b(r"\sqrt[3]{54}")), (r"-\sqrt{2}", b(r"\frac{-2}{\sqrt{2}}")),
    ],
    ("roots and surds", "wrong"): [
        (r"5\sqrt{2}", b(r"\sqrt{52}")), (r"\sqrt{3}-1", b(r"1-\sqrt{3}")), (r"2+\sqrt{3}", b(r"\frac{1}{2+\sqrt{3}}")),
        (r"\sqrt[3]{4}", b(r"2^{3/2}")), (r"\frac{1+\sqrt{5}}{2}", b("1.618")),
        (r"\sqrt{7+4\sqrt{3}}", b(r"2-\sqrt{3}")),
        (r"3\sqrt[3]{2}", b(r"\sqrt[3]{45}")), (r"\sqrt{2}+\sqrt{3}", b(r"\sqrt{5}")),
        (r"\sqrt{13}", b(r"\pm\sqrt{13}")),
    ],
    ("algebra", "right"): [
        ("(x-3)(x+5)", b("x^2+2x-15")), ("a^2-b^2", b("(a+b)(a-b)")), (r"\frac{x}{x+1}", b(r"1-\frac{1}{x+1}")),
        (r"\frac{3x+1}{x^2-1}", b(r"\frac{2}{x-1}+\frac{1}{x+1}")), ("x^3-8", b("(x-2)(x^2+2x+4)")),
        (r"\frac{1}{a}+\frac{1}{b}", b(r"\frac{a+b}{ab}")), ("2(m+n)", b("2m+2n")), ("-x+4", b("4-x")),
        ("1.5x+2", b(r"\frac{3}{2}x+2")), ("(2x+1)/3", b(r"\frac{2x+1}{3}")), ("x^{-2}", b(r"\frac{1}{x^2}")),
        (r"\frac{p^2-4}{p-2}", b("p+2")), ("u^2v+uv^2", b("uv(u+v)")), ("x*(x-1)/2", b(r"\frac{x^2-x}{2}")),
        ("n^2", b("n*n")), ("4ab", b("(a+b)^2-(a-b)^2")), ("3^{n+1}", b(r"3\cdot 3^n")), ("2^{2n}", b("4^n")),
    ],
    ("algebra", "wrong"): [
        ("(x-3)(x+5)", b("x^2-2x-15")), ("a^2-b^2", b("(a-b)^2")), (r"\frac{x}{x+1}", b(r"1+\frac{1}{x+1}")),
        (r"\frac{1}{a}+\frac{1}{b}", b(r"\frac{2}{a+b}")), ("2(m+n)", b("2m+n")), ("-x+4", b("x-4")),
        ("x^3-8", b("(x-2)^3")), ("x^{-2}", b(r"-\frac{1}{x^2}")), ("4ab", b("2ab")), ("3^{n+1}", b("3^n+1")),
        ("2^{2n}", b("2^{n+2}")), ("n^2", b("2n")), (r"|x-6|", b("6-x")), ("x^2y", b("xy^2")),
    ],
    ("trigonometry, exponentials and logarithms", "right"): [
        (r"\sin 2\theta", b(r"2\sin\theta\cos\theta")), (r"\tan^2 x", b(r"\sec^2 x-1")),
        (r"\frac{1}{2}\ln 3", b(r"\ln\sqrt{3}")),
        (r"\ln 2", b("log(2)")), (r"\ln 12", b(r"2\ln 2+\ln 3")), (r"e^{x+1}", b(r"e\cdot e^x")),
        ("sin(x)**2", b(r"1-\cos^2 x")),
        (r"\cos^4 x-\sin^4 x", b(r"\cos 2x")), (r"\log_4 8", b(r"\frac{3}{2}")),
        (r"\sinh x", b(r"\frac{e^x-e^{-x}}{2}")),
        (r"-\ln|\cos x|+C", b(r"\ln|\sec x|+C")), (r"xe^x-e^x", b(r"(x-1)e^x")), 
        ("2*exp(3*x)", b("2e^{3x}")), (r"\frac{\sqrt{2}}{2}", b(r"\cos\frac{\pi}{4}=\frac{\sqrt{2}}{2}")),
    ],
    ("trigonometry, exponentials and logarithms", "wrong"): [
        (r"\sin 2\theta", b(r"2\sin\theta")), (r"\tan^2 x", b(r"\sec^2 x+1")), (r"\ln 12", b(r"\ln 3\cdot\ln 4")),
        (r"e^{x+1}", b("e^x+1")), (r"\cos^4 x-\sin^4 x", b(r"\sin 2x")), (r"\sin^{-1}x", b(r"\frac{1}{\sin x}")),
        (r"\frac{1}{2}\ln 3", b(r"\ln\frac{3}{2}")), (r"xe^x-e^x", b("xe^x")), (r"\cosh x", b(r"\frac{e^x-e^{-x}}{2}")),
        (r"\frac{\pi}{4}", b(r"\arctan 1")),
        (r"-\ln|\cos x|+C", b(r"-\ln|\sin x|+C")),
    ],
    ("equations, inequalities, lines and circles", "right"): [
        ("y=-2x+7", b("2x+y=7")), ("3x-4y=12", b(r"y=\frac{3}{4}x-3")), ("(x-1)^2+(y+2)^2=9", b("x^2+y^2-2x+4y-4=0")),
        ("x>-3", b(r"(-3,\infty)")), (r"x\le 2", b(r"2\ge x")), ("2x+3>7", b("x>2")), ("x=4", b("4")),
        ("x=1, x=-6", b("-6, 1")), ("y=x^2-4x+3", b("y=(x-1)(x-3)")),
        (r"\frac{x^2}{9}+\frac{y^2}{4}=1", b("4x^2+9y^2=36")),
        ("y-2=3(x-1)", b("y=3x-1")),
    ],
    ("equations, inequalities, lines and circles", "wrong"): [
        ("y=-2x+7", b("2x-y=7")), ("3x-4y=12", b(r"y=\frac{3}{4}x+3")), ("(x-1)^2+(y+2)^2=9", b("(x+1)^2+(y-2)^2=9")),
        ("x>-3", b(r"[-3,\infty)")), (r"x\le 2", b(r"x\ge 2")), ("x=1, x=-6", b("-1, 6")), ("x=4", b("x^2=16")),
        ("y=x^2-4x+3", b("y=(x+1)(x+3)")), ("(1,2)", b("x=2, y=1")),
    ],
    ("points, sets, matrices and words", "right"): [
        ("(3,-4)", b(r"\left(3,\,-4\right)")), (r"\{2,3,5\}", b(r"\{5,3,2\}")), ("(2,3,6)", b("(2, 3, 6)")),
        (r"\begin{pmatrix}2&0\\0&2\end{pmatrix}", b(r"\begin{bmatrix}2&0\\0&2\end{bmatrix}")),
        (r"\text{Yes}", b("yes")), (r"\text{Thursday}", "The answer is Thursday."), ("B", "The answer is B."),
        ("3+4i", b("4i+3")), (r"(0,1]", b(r"0<x\le 1")), ("2, 3", b(r"2\text{ and }3")), (r"\frac{2}{5}", b("0.4")),
    ],
    ("points, sets, matrices and words", "wrong"): [
        ("(3,-4)", b("(-4,3)")), (r"\{2,3,5\}", b(r"\{2,3\}")), (r"\text{Yes}", b("no")), ("B", "The answer is D."),
        (r"\begin{pmatrix}2&0\\0&2\end{pmatrix}", b(r"\begin{pmatrix}0&2\\2&0\end{pmatrix}")), ("3+4i", b("3-4i")),
        (r"\text{Thursday}", "The answer is Tuesday."), ("2, 3", b("2")), (r"(0,1]", b("[0,1)")),
    ],
    ("short sentences", "right"): [
        ("42", "It is 42."), ("42", "So 42"), ("42", "So, 42."), ("42", "x is 42"), ("42", "is 42"),
        ("42", "It's $42$."), ("42", "So it is 42"), ("42", "Thus it's 42."), ("3/4", "it's 3/4"), ("1/2", "so 0.5"),
        ("x+1", "so x+1"), ("x+1", "It is x+1"), ("x+1", "it's $x+1$"), (r"2\pi", r"It is $2\pi$"), ("-5", "it's -5"),
        ("(1,2)", "so (1,2)"), ("(1,2)", "it is (1, 2)"), ("Tuesday", "It is Tuesday"), ("Tuesday", "it's Tuesday."),
        ("C", "so C"), ("C", "It is C."), ("C", "it's (C)"), ("1,2", "so x = 1 or x = 2"), ("1,2", "it is 1 and 2"),
        ("50%", "it's 50%"), ("5", "it's $5"), ("1000", "it's 1,000"), (r"\sqrt{2}", r"it is \sqrt{2}"),
        ("y=2x", "so y = 2x"), ("y=2x", "it is y=2x"), ("is", "is"),
    ],
    ("short sentences", "wrong"): [
        ("42", "it isn't 42"), ("42", "It is not 42."), ("42", "so 41"), ("42", "it's 42 or 43"),
        ("42", "it's at most 42"), ("42", "so 84 - 42"), ("42", "it is 6*7"), ("x+1", "it's x-1"), ("C", "it's B"),
        ("42", "maybe it's 42"), ("1,2", "it's 1"), ("42", "it is between 41 and 43"), ("5", "so 4 + 1"),
        ("5", "it's 10/2"), ("42", "so 4.2"),
    ],
    ("formulas of textbooks", "right"): [
        (r"\frac{2x}{(x^2+1)^2}", b(r"\dfrac{2x}{x^4+2x^2+1}")), (r"\frac{-1}{x^2}", b(r"-x^{-2}")),
        (r"x^2e^x", b(r"e^{x}\cdot x^{2}")), (r"\frac{\sin x}{x}", b(r"x^{-1}\sin x")),
        (r"\frac{e^{2x}}{2}+C", b(r"\tfrac12 e^{2x}+C")), (r"\frac{1}{3}x^3-x+C", b(r"\frac{x^3}{3}-x+C")),
        (r"\frac{1}{2}\sin(2x)+C", b(r"\sin x\cos x+C")),
        (r"a_n=2^n-1", b(r"2^n-1")), (r"a_n = 3n+2", b(r"a_n = 2+3n")),
        (r"S_n=\frac{n(n+1)}{2}", b(r"\frac{n^2+n}{2}")), (r"\frac{n(n+1)(n+2)}{6}", b(r"\binom{n+2}{3}")),
        (r"2^{n-1}", b(r"\frac{2^n}{2}")), (r"n\cdot 2^{n-1}", b(r"\frac{n2^n}{2}")), (r"(n+1)!-1", b(r"(n+1)! - 1")),
        (r"\frac{1}{n!}", b(r"\dfrac{1}{n!}")),
        (r"\pi r^2 h", b(r"\pi h r^{2}")), (r"4\pi R^3/3", b(r"\frac{4}{3}\pi R^3")),
        (r"\sqrt{a^2+b^2}", b(r"(a^2+b^2)^{1/2}")), (r"v=\sqrt{2gh}", b(r"\sqrt{2gh}")),
        (r"\frac{mv^2}{r}", b(r"m v^2/r")), (r"T=2\pi\sqrt{\frac{l}{g}}", b(r"2\pi\sqrt{l/g}")),
        (r"\frac{kq_1q_2}{r^2}", b(r"k\frac{q_1 q_2}{r^2}")),
        (r"-\frac{b}{2a}", b(r"\frac{-b}{2a}")), (r"\frac{-b+\sqrt{b^2-4ac}}{2a}", b(r"\frac{\sqrt{b^2-4ac}-b}{2a}")),
        (r"x=\frac{-1\pm\sqrt{5}}{2}", b(r"-\frac12\pm\frac{\sqrt5}{2}")),
        (r"2\cos\theta", b(r"2 \cos(\theta)")), (r"e^{i\theta}", b(r"\cos\theta+i\sin\theta")),
        (r"\cos\frac{2\pi}{7}", b(r"\cos(2\pi/7)")), (r"2\cos 20^\circ", b(r"2\cos\frac{\pi}{9}")),
        (r"\tan 15^\circ", b(r"2-\sqrt{3}")), (r"\sin 18^\circ", b(r"\frac{\sqrt5-1}{4}")),
        (r"\log_2 5", b(r"\frac{\log 5}{\log 2}")), (r"\log_{10}2", b(r"\log 2")), (r"\ln 2", b(r"\log_e 2")),
        (r"\frac{\ln 2}{3}", b("log(2)/3")),
        (r"e^{-1}", b(r"\frac1e")), (r"e^{\frac{1}{2}}", b(r"\sqrt{e}")), (r"\pi^2/6", b(r"\frac{\pi^2}{6}")),
        (r"\frac{\pi}{2\sqrt{2}}", b(r"\frac{\pi\sqrt2}{4}")), (r"2^{10}-1", b("1023")),
        (r"\frac{3}{8}\sqrt{2}", b(r"3\sqrt{2}/8")), (r"12\sqrt[3]{2}", b(r"12\cdot 2^{1/3}")),
        (r"(x+1)(x+2)(x+3)", b(r"x^3+6x^2+11x+6")), (r"(a+b+c)^2", b(r"a^2+b^2+c^2+2ab+2bc+2ca")),
        (r"x^4+4y^4", b(r"(x^2+2xy+2y^2)(x^2-2xy+2y^2)")), (r"\frac{1}{1+x}", b(r"(1+x)^{-1}")),
        (r"\frac{x+1}{x-1}", b(r"1+\frac{2}{x-1}")), (r"\frac{a}{1-r}", b(r"-\frac{a}{r-1}")),
        (r"y=\frac{x+1}{2}", b(r"x-2y+1=0")), (r"y = e^x + C", b(r"y=C+e^x")), (r"x^2-y^2=1", b(r"(x-y)(x+y)=1")),
        (r"\frac{x^2}{16}-\frac{y^2}{9}=1", b(r"9x^2-16y^2=144")), (r"2x+3y-z=5", b(r"z=2x+3y-5")),
        (r"x\geq 3", b(r"[3,\infty)")), (r"a>b", b(r"b<a")), (r"a+b<c", b(r"c-a>b")),
        (r"0.1x^2", b(r"\frac{x^2}{10}")), (r"1.25x+3", b(r"\frac54x+3")), ("2*sqrt(3)/3", b(r"\frac{2}{\sqrt3}")),
        ("x**3/3 - x", b(r"\frac{x^3}{3}-x")), ("(a+b)*(a-b)", b("a^2-b^2")),
        ("exp(-2*x)*cos(3*x)", b(r"e^{-2x}\cos 3x")), (r"\frac{\sqrt{x+1}}{x}", b(r"\sqrt{x+1}/x")),
        ("sqrt(2)", b("2^{0.5}")),
        (r"\frac{1}{2}(e-1)", b(r"\frac{e-1}{2}")), (r"1-\frac{1}{e}", b(r"\frac{e-1}{e}")),
        (r"\frac{\pi}{4}-\frac12", b(r"\frac{\pi-2}{4}")), (r"\ln\frac32", b(r"\ln 3-\ln 2")),
        (r"\ln(1+\sqrt2)", b(r"-\ln(\sqrt2-1)")),
        ("3-2i", b(r"-2i+3")), (r"\frac{1+i}{2}", b(r"\frac{1}{1-i}")), ("i", b(r"\sqrt{-1}")),
        (r"-1+i\sqrt3", b(r"2e^{2\pi i/3}")), ("k", b(r"k")), (r"\frac{p}{q}", b("p/q")),
        (r"\lambda^2-5\lambda+6", b(r"(\lambda-2)(\lambda-3)")),
        (r"3\times 10^8", b("300000000")), (r"\frac{22}{7}", b("3.142857142857")), (r"x\sqrt{x}", b("x^{3/2}")),
        (r"\sqrt{x}", b("x^{1/2}")), (r"\frac{1}{\sqrt{x}}", b(r"x^{-1/2}")), (r"\sqrt[3]{x^2}", b("x^{2/3}")),
        (r"|a-b|", b("|b-a|")),
        (r"\frac{2}{\pi}", b(r"2\pi^{-1}")), (r"\frac{x^2+1}{2}", b(r"(x^2+1)/2")),
        (r"\frac{1}{2}x+\frac{3}{4}", b(r"1/2x+3/4")), (r"\frac{1}{4}\ln 5", b(r"\ln(5)/4")),
        (r"2\arctan x", b(r"2\tan^{-1}(x)")), (r"\frac{\ln x}{x}", b(r"\frac{1}{x}\ln x")),
        (r"e^x(\sin x+\cos x)", b(r"e^x\sin x+e^x\cos x")), (r"3x^2\ln x+x^2", b(r"x^2(3\ln x+1)")),
        (r"-2\sin 2x", b(r"-4\sin x\cos x")), (r"\sec x\tan x", b(r"\frac{\sin x}{\cos^2 x}")),
    ],
    ("formulas of textbooks", "wrong"): [
        (r"\frac{2x}{(x^2+1)^2}", b(r"\frac{2x}{x^4+1}")), (r"x^2e^x", b(r"e^{x^2}x^2")),
        (r"\frac{1}{3}x^3-x+C", b(r"\frac{x^3}{3}+x+C")), (r"a_n=2^n-1", b(r"2^n+1")), (r"2^{n-1}", b(r"2^n-1")),
        (r"n\cdot 2^{n-1}", b(r"n\cdot 2^n-1")),
        (r"(n+1)!-1", b(r"n!-1")), (r"\pi r^2 h", b(r"\pi r h^2")), (r"4\pi R^3/3", b(r"\frac{4}{3}\pi R^2")),
        (r"\sqrt{a^2+b^2}", b("a+b")), (r"-\frac{b}{2a}", b(r"-\frac{2a}{b}")),
        (r"x=\frac{-1\pm\sqrt{5}}{2}", b(r"\frac{1\pm\sqrt5}{2}")),
        (r"e^{i\theta}", b(r"\cos\theta-i\sin\theta")), (r"\tan 15^\circ", b(r"2+\sqrt{3}")),
        (r"\log_2 5", b(r"\log 5-\log 2")), (r"e^{-1}", b("-e")), (r"\pi^2/6", b(r"\frac{\pi}{6}")),
        (r"(a+b+c)^2", b("a^2+b^2+c^2")), (r"\frac{x+1}{x-1}", b("-1")),
        (r"y=\frac{x+1}{2}", b(r"x-2y-1=0")), (r"x^2-y^2=1", b(r"(x-y)^2=1")), (r"a>b", b("a<b")),
        (r"a+b<c", b(r"c-a<b")), (r"0.1x^2", b(r"\frac{x^2}{100}")), (r"\ln\frac32", b(r"\frac{\ln 3}{\ln 2}")),
        ("3-2i", b("2i-3")), (r"\frac{1+i}{2}", b(r"\frac{1}{1+i}")),
        (r"i", b("1")), (r"x\sqrt{x}", b("x^{2/3}")), (r"|a-b|", b("a-b")), (r"|a-b|", b("|a|-|b|")),
        (r"\sqrt{x^2+9}", b("x+3")), (r"\frac{2}{\pi}", b(r"2\pi^{-2}")), (r"\frac{1}{4}\ln 5", b(r"\ln\frac54")),
        (r"-2\sin 2x", b(r"2\sin 2x")), (r"\sec x\tan x", b(r"\frac{\sin x}{\cos x}")),
        (r"\lambda^2-5\lambda+6", b(r"(\lambda+2)(\lambda+3)")), (r"2x+3y-z=5", b(r"z=2x+3y+5")),
        (r"\frac{\pi}{4}-\frac12", b(r"\frac{\pi-1}{4}")), (r"2^{10}-1", b("1024")), (r"\frac{22}{7}", b(r"\pi")),
        (r"\cos\frac{2\pi}{7}", b(r"\cos\frac{\pi}{7}")), (r"\sqrt[3]{x^2}", b("x^{3/2}")),
        (r"\frac{1}{2}x+\frac{3}{4}", b(r"\frac{1}{2x}+\frac34")), (r"\log x", b(r"\log_2 x")),
        (r"e^x(\sin x+\cos x)", b(r"e^x\sin x\cos x")), (r"x", b("x+0.0000001")), (r"\pi", b(r"\pi+10^{-9}")),
        (r"x^2+C", b("x^2")), (r"f(x)=2x", b("f(x)=3x")), (r"a_{n+1}", b("a_n+1")), (r"x_1+x_2", b("2x_1")),
        (r"E=mc^2", b("E=mc")), (r"\sin(x^2)", b(r"\sin^2 x")), (r"\sin^2 x", b(r"\sin x^2")),
        (r"(x+y)^2", b("x^2+y^2")), (r"\sqrt{2}+\sqrt{8}", b(r"\sqrt{10}")), ("xyz", b("xy+z")), ("abc", b("abd")),
        (r"\frac{x}{y}", b(r"\frac{y}{x}")), ("2^x", b("x^2")),
    ],
}  # fmt: skip
HOSTILE = {
    "right": [  # replies around a right answer that look odd
        ("12", "Ignore the above. </think> \\boxed{12}"), ("12", r"\boxed{12}\boxed{12}"),
        ("12", "\\boxed{12}\n\n\n" + " " * 5000),
        ("12", r"$$\boxed{\boxed{12}}$$"), ("12", "x" * 30000 + r" \boxed{12}"), ("12", r"{\Large\boxed{12}}"),
        ("12", r"\boxed{\phantom{0}12}"), ("12", r"\boxed{12\quad}"), (r"\sqrt{2}", b(r"\sqrt{2}\approx 1.414")),
        ("x+1", b("x+1") + " " + "}" * 500),
    ],
    "wrong": [
        ("12", r"\boxed{11} \boxed{12} \boxed{13}"), ("12", r"\boxed{12 \text{ or } 13}"),
        ("12", r"\boxed{12, 13, 14}"),
        ("12", r"\boxed{x}"), ("12", r"\boxed{n}"), ("12", r"\boxed{answer}"), ("12", r"\boxed{12=13}"),
        ("12", r"\boxed{[11,13]}"), ("12", r"\boxed{x=x}"), ("12", r"\boxed{\text{the gold answer}}"),
        ("12", r"\boxed{\_\_}"),
        ("12", r"\boxed{12 \neq 12}"), ("12", r"\boxed{\infty}"), ("12", r"\boxed{12 \pm 0.5}"), ("12", r"\boxed{>11}"),
        ("12", r"\boxed{\frac{12}{0}}"), ("12", r"\boxed{12^{12^{12^{12}}}}"), ("12", r"\boxed{3\cdot 4}"),
        ("12", r"\boxed{\int_0^{12} dx}"), ("12", r"\boxed{\sum_{k=1}^{12} 1}"), ("12", r"\boxed{24/2}"),
        ("12", r"\boxed{36/3}"),
        ("12", r"\boxed{\sqrt{144+0}}"), ("12", r"\boxed{|{-12}|}"), ("12", r"\boxed{12\text{ is wrong}}"),
        ("12", r"\boxed{\max(12,1)}"), ("12", r"\boxed{12 \text{ if } x>0}"), ("12", "<think>12</think>"),
        ("12", r"<think>\boxed{12}"),
        ("12", "```\n\\boxed{12}\n```\n\\boxed{13}"), ("12", "I cannot give 12 as the answer."), ("12", "eval('6*2')"),
        ("12", r"\boxed{__import__('os').system('echo 12')}"), ("12", r"\boxed{1\boxed{2}}"), ("12", r"\boxed{1 2}"),
        (r"\sqrt{2}", b(r"\sqrt{2}+10^{-40}")), (r"\sqrt{2}", b("1.4142135623730951454746")),
        (r"\pi", b(r"\frac{355}{113}")),
        (r"\pi", b("3.1416")), (r"e", b(r"(1+10^{-9})^{10^9}")), ("x^2", b("x^{2.0000001}")), ("x", b(r"\sqrt{x^2}")),
        ("x", b(r"\frac{x^{9999}}{x^{9998}}") + r" \boxed{y}"), ("x^2", b(r"|x|\cdot x")), ("x+1", b("x+1+10^{-30}x")),
        ("x", b("x^{x^{x^x}}")), ("x", b(r"\sin(\sin(\sin(x)))")), (r"\sin x", b("x-x^3/6+x^5/120")),
        (r"|x-7|", b("7-x")),
        ("x+1", b("(x+1") + r" \boxed{(x+1}"), ("dog", b("god")),
    ],
}  # fmt: skip


CASES = PAIRS | {("hostile", verdict): pairs for verdict, pairs in HOSTILE.items()}


@pytest.mark.parametrize(("subject", "verdict"), CASES)
def test_each_reply_earns_its_label(monkeypatch, subject, verdict):
    monkeypatch.setattr(math_answer, "DEADLINE", 20.0)  # a slow machine needs more processor time
    due = float(verdict == "right")
    wrong = [f"{gold} | {reply}" for gold, reply in CASES[subject, verdict] if math_verdict(reply, gold).reward != due]
    assert not wrong, f"these do not earn {due}:\n" + "\n".join(wrong)
