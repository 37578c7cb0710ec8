"""From a row to a rendered conversation: dialects of rows, chat templates, thoughts, stop tokens."""
