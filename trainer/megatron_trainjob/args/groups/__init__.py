"""The groups of arguments, one file each; an argument is declared in exactly one of them."""
