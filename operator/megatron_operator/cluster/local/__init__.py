"""Applies plans as processes of this machine; `mtj run` needs no cluster."""
