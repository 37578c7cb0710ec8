"""What this project changes in megatron-core: the register of changes, and the changes themselves in patches/."""
