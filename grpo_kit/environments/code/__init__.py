"""Tasks that ask for a program: rows of public sets, and a generator. Nothing here runs, unpickles or evaluates a row.

column.py         the column `tests`, which `grpo_kit/rewards/code_tests.py` reads: checked, bounded, written
unpacking.py      texts that a row holds compressed or pickled
program_rows.py   LiveCodeBench, APPS and TACO, Codeforces, open-r1's verification_info, MBPP, HumanEval
unit_tests.py     the unit tests of NeMo-Gym's rows, read and written
programs.py       small tasks by seed, with tests whose right answers are known
"""
