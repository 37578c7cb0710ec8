"""Images and videos of rows: where they come from, how they become pixels, and the tokens that stand for them."""
