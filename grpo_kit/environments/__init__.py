"""Tasks beside math: structured output, instructions, documents, programs, an office. Generators, and readers of rows.

A task is a prompt and the columns that its environment's reward reads (`task.py`). Nothing here judges a reply: the
rewards are `grpo_kit/rewards/{structured_output,instructions,documents_qa,code_tests,end_state}.py`. The last asks the
world in which the policy acted (`office/`) what the end is worth.

structured.make_tasks(100, seed=7)     a document, a schema, and the values that are known
instructions.make_tasks(100, seed=7)   a small text to write, and instructions that hold together
documents.make_tasks(100, seed=7)      documents with distractors, and a question over one or two of them
office.make_tasks(100, seed=7)         an office with mail, calendar and tasks, and a request to be done with its tools
code.programs.make_tasks(100, seed=7)  a program or function to write, and its tests
gym_rows.read_gym_row, write_gym_row   NeMo-Gym's rows, both ways
public_rows.read_public_row            rows of other public sets
"""
