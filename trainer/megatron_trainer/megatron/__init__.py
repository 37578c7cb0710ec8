"""The changes of this project to megatron-core: their register, and the patches themselves in patches/."""
