"""How good a judge is: pairs with a known winner, its verdicts on them, and whether it may train."""
