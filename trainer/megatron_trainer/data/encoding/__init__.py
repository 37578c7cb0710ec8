"""From a rendered conversation to tokens, with a loss weight for each."""
