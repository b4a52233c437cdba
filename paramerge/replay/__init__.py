"""``replay``: what a recipe says, done again."""
