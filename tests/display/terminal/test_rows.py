"""What is printed about the texts that `sft` learns from, and about those that it learned worst."""

from grpo_kit.display.terminal.rows import print_texts, print_weakest


def test_texts_are_told_with_what_is_left_out_and_why(capsys):
    examples = [{"place": "a.jsonl, line 3", "detail": "it has 9,000 tokens"}]
    print_texts(
        {
            "rows": 1200,
            "tokens": {"median": 300, "90th": 400, "longest": 768, "sum": 1000},
            "trained": {"median": 30, "90th": 40, "longest": 90, "sum": 250},
            "left_out": {"too long": {"count": 12, "longest": 9000, "examples": examples}},
            "families": [
                {"family": "gravity", "rows": 5, "median": 8, "longest": 9, "within": {512: 0.5, 7680: 1.0}},
                {"family": None, "rows": 0, "left_out": {"not a puzzle": 3}},
            ],
        }
    )
    assert " ".join(capsys.readouterr().out.split()) == (
        "1,200 texts of 300 tokens (median), 768 at most; 25% of the tokens are trained "
        "12 left out (too long): a.jsonl, line 3: it has 9,000 tokens; the longest has 9,000 tokens "
        "gravity: 5 traces of 8 tokens (median), 9 at most; 50% within 512, 100% within 7,680"
    )


def test_the_weakest_places_are_told_with_their_text(capsys):
    row = {
        "place": "a.jsonl, line 3",
        "logprob": -7.25,
        "greedy": False,
        "token": 12,
        "tokens": 90,
        "text": "1|7|[/red]",
    }
    lost = row | {"logprob": None}
    print_weakest({"texts": 300, "greedy": 0.25, "lowest": -1.5, "rows": [lost, row, row, row]})
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith(
        "greedy decoding writes 25% of 300 texts whole; the least likely token of a text has -1.50 nats"
    )
    place = "a.jsonl, line 3, token 12: 1|7|[/red]"
    assert told.endswith(f"The lowest: NaN {place} -7.25 {place} -7.25 {place}")
