"""`python -m dreambooth`: what `torchrun` and `accelerate launch` start."""

from dreambooth.cli import main

main()
