"""Shell scripts: their commands with what is known of their variables, without running anything."""
