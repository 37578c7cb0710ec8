"""A plan becomes processes of this machine; `mtj run` needs no cluster."""
