"""`qbench search`: which scheme each layer gets, within a budget.

`sensitivity` measures what each scheme costs at each layer, `choice` spends the budget, and `mixed`
does both and writes a recipe.
"""
