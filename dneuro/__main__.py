"""``python -m dneuro`` is ``dneuro``."""

from dneuro.cli import main

main()
